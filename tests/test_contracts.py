"""`docs/events.md` and `docs/run_folder.md` promise a format; they are held to what the code writes."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from support import ROOT, job_data, run_in_process
from trainer_core.events import EVENTS_VERSION, FIELDS, PHASES
from trainer_core.job_file import parse_job
from trainer_core.run_dir import RUN_FOLDER_VERSION, run_dir_for

EVENTS = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
RUN_FOLDER = (ROOT / "docs" / "run_folder.md").read_text(encoding="utf-8")
IN_BRACKETS = re.compile(r"\([^()]*\)")


def rows(page: str) -> list[list[str]]:
    """The cells of a page's table, head and rule left out."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line.startswith("| `")]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_page_of_events_has_every_event_with_exactly_its_fields() -> None:
    told = {codes(event)[0]: frozenset(codes(IN_BRACKETS.sub("", fields))) for event, fields, _ in rows(EVENTS)}
    assert told == FIELDS
    assert set(PHASES) <= {" ".join(code.split()) for code in re.findall(r"`([^`]+)`", EVENTS)}


def test_both_pages_tell_the_version_that_the_code_writes() -> None:
    assert EVENTS.startswith(f"# Events, version {EVENTS_VERSION}\n")
    assert RUN_FOLDER.startswith(f"# The run folder, version {RUN_FOLDER_VERSION}\n")


@pytest.fixture(scope="module")
def run_folder(pictures: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that has left everything that a run without trackers can leave."""
    job = parse_job(
        job_data(
            pictures,
            training={"max_train_steps": 2, "checkpoint_step_interval": 1, "use_ema": True},
            validation={
                "num_validation_images": 1,
                "validation_resolution": "32x32, 48x32",
                "validation_num_inference_steps": 1,
                "num_held_out": 1,
                "eval_steps_interval": 1,
                "eval_timesteps": 1,
            },
        )
    )
    out = tmp_path_factory.mktemp("contract")
    run_in_process(job, out, cache)
    return run_dir_for(job, out).root


def test_every_file_of_a_run_folder_is_on_its_page(run_folder: Path) -> None:
    told = [re.sub(r"\b(NAME|N|STEP|DIGEST)\b", "*", code) for row in rows(RUN_FOLDER) for code in codes(row[0])]
    inner = {code for row in rows(RUN_FOLDER) if row[0].startswith("`checkpoints/") for code in codes(row[1])}
    patterns = [pattern + "*" if pattern.endswith("/") else pattern for pattern in told]
    patterns += [code for row in rows(RUN_FOLDER) for code in codes(row[1]) if code.endswith(".safetensors")] + [
        "*.safetensors"
    ]
    files = [path.relative_to(run_folder).as_posix() for path in run_folder.rglob("*") if path.is_file()]
    assert len(files) > 12
    assert not [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)]
    for folder in (run_folder / "checkpoints").iterdir():
        assert {path.name + "/" * path.is_dir() for path in folder.iterdir()} <= inner


def test_a_run_folder_tells_its_versions(run_folder: Path) -> None:
    assert json.loads((run_folder / "manifest.json").read_text(encoding="utf-8"))["version"] == RUN_FOLDER_VERSION
    events = [json.loads(line) for line in (run_folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {event["version"] for event in events if event["event"] == "started"} == {EVENTS_VERSION}
    state = json.loads(next((run_folder / "checkpoints").rglob("state.json")).read_text(encoding="utf-8"))
    assert state.keys() == {"history", "digests", "optimizer"}
