"""How the samples of an optimiser step are shared out among processes.

A step has the samples of its micro-batches, one after the other, whatever the number of processes. Each process takes a run of
neighbours among them, as many as the others or one more or less, and of each micro-batch that it meets there the rows that are
its own. What a sample draws belongs to its position in the step (`objective.py`), so the number of processes changes who
computes what, and nothing else.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Share(NamedTuple):
    """Which of how many processes. `in_step`: all must make the same number of passes."""

    rank: int = 0
    count: int = 1
    in_step: bool = False


WHOLE = Share()


class Part(NamedTuple):
    """Rows of a micro-batch, counted within the step, and the position of the first of them among the samples of the step.
    What does not count is computed only because the others compute."""

    number: int
    rows: range
    first: int
    counts: bool = True


def parts_of(sizes: Sequence[int], share: Share = WHOLE) -> list[Part]:
    """The parts of this process, of micro-batches of these sizes."""
    own = _own_parts(sizes, share.rank, share.count)
    if share.in_step:
        passes = max(len(_own_parts(sizes, rank, share.count)) for rank in range(share.count))
        own += [Part(0, range(1), 0, counts=False)] * (passes - len(own))
    return own


def most_together(batch_size: int, accumulation: int, count: int) -> int:
    """The most samples that one of so many processes passes through the model at once."""
    return min(batch_size, -(-batch_size * accumulation // count))


def _own_parts(sizes: Sequence[int], rank: int, count: int) -> list[Part]:
    total, start, parts = sum(sizes), 0, []
    begin, end = total * rank // count, total * (rank + 1) // count
    for number, size in enumerate(sizes):
        rows = range(max(begin - start, 0), min(end - start, size))
        if rows:
            parts.append(Part(number, rows, start + rows.start))
        start += size
    return parts
