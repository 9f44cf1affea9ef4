"""The table of what the default suite leaves out names tests and rows that are there."""

from collections import defaultdict
from pathlib import Path

import pytest
from slow_tier import KEPT, name_of, row_of


@pytest.mark.parametrize("name", KEPT)
def test_a_test_of_the_table_is_there_with_the_rows_that_stay(name: str, request: pytest.FixtureRequest) -> None:
    file, _, test = name.partition("::")
    places = list(Path(__file__).parent.rglob(file))
    assert len(places) == 1 and f"def {test}(" in places[0].read_text(encoding="utf-8")
    rows = defaultdict(set)
    for item in request.session.items:
        rows[name_of(item)].add(row_of(item))
    whole = not request.config.option.keyword and name in rows  # else its rows are not known here
    assert not whole or set(KEPT[name]) <= rows[name]
