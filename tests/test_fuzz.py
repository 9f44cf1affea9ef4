"""A second of spoilt files for everything that reads files; `python -m tests.fuzz all --minutes 30` is the long form."""

import pytest
from fuzz.campaign import campaign
from fuzz.targets import NAMES, target_of


@pytest.mark.parametrize("name", NAMES)
def test_a_spoilt_file_gives_a_result_or_an_error_in_words(name: str) -> None:
    outcome = campaign(target_of(name), seconds=1.0, seed=9, most=150)
    assert not outcome.findings
    assert outcome.files >= 5 and (outcome.refused or name in ("control", "run"))
