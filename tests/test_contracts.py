"""`docs/events.md` and `docs/run_folder.md` promise formats; they are held to the code, and to a folder in `test_docs.py`."""

import re

from doc_pages import codes, rows

from support import ROOT
from trainer_core.events import EVENTS_VERSION, FIELDS, PHASES
from trainer_core.run_dir import RUN_FOLDER_VERSION

EVENTS = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
RUN_FOLDER = (ROOT / "docs" / "run_folder.md").read_text(encoding="utf-8")
IN_BRACKETS = re.compile(r"\([^()]*\)")


def test_the_page_of_events_has_every_event_with_exactly_its_fields() -> None:
    told = {codes(event)[0]: frozenset(codes(IN_BRACKETS.sub("", fields))) for event, fields, _ in rows(EVENTS)}
    assert told == FIELDS
    assert set(PHASES) <= {" ".join(code.split()) for code in re.findall(r"`([^`]+)`", EVENTS)}


def test_both_pages_tell_the_version_that_the_code_writes() -> None:
    assert EVENTS.startswith(f"# Events, version {EVENTS_VERSION}\n")
    assert RUN_FOLDER.startswith(f"# The run folder, version {RUN_FOLDER_VERSION}\n")
