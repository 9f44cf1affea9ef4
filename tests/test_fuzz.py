"""A second of spoilt files for everything that reads files; `python -m tests.fuzz all --minutes 30` is the long form."""

from pathlib import Path

import pytest
from fuzz.campaign import campaign
from fuzz.target import Target
from fuzz.targets import NAMES, target_of


@pytest.mark.parametrize("name", NAMES)
def test_a_spoilt_file_gives_a_result_or_an_error_in_words(name: str) -> None:
    outcome = campaign(target_of(name), seconds=1.0, seed=9, most=150)
    assert not outcome.findings
    assert outcome.files >= 5 and (outcome.refused or name in ("control", "run"))


def test_a_campaign_that_is_broken_off_tells_what_it_did():
    def feed(data: bytes, folder: Path) -> None:
        fed.append(data)
        if len(fed) == 5:
            raise KeyboardInterrupt
        if len(fed) == 3:
            raise TypeError("of nobody's making")

    fed: list[bytes] = []
    outcome = campaign(Target(lambda folder: [b"good"], feed), seconds=60.0, seed=1)
    assert (outcome.files, outcome.is_whole) == (3, False)
    assert [finding.what for finding in outcome.findings] == ["TypeError: of nobody's making"]
