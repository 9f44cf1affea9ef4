"""More processes of this machine beside this one, for a job that wants several of its devices.

The process that was started becomes the first of the group: what it prints, its exit code, its standard input and the signals
that it gets are those of a run in one process. The others are started by it and end with it. Launchers do the same from
outside (`accelerate launch`, torchrun), also over several machines; then nothing here is used.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from .errors import JobError, StopRequested
from .processes import Group, joined

END_SECONDS = 30.0  # how long the others may take to leave once the first has


def count_devices(wish: int, device: str) -> int:
    """How many processes the job wants here; 0 is one for each card. JobError where there are fewer cards."""
    cards = torch.cuda.device_count() if device != "cpu" else 0
    if cards and wish > cards:
        raise JobError(f"training.num_devices is {wish}, but this machine has {cards} cards; give at most that, or 0 for all")
    return wish or cards or 1


@contextmanager
def with_helpers(count: int, device: str, work: Callable[..., Any]) -> Iterator[Group]:
    """In here this process is the first of `count`; the others do `work(group=...)`, which must be picklable."""
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        arguments = [(rank, count, device, meeting, max(1, threads // count)) for rank in range(count)]
        helpers = [get_context("spawn").Process(target=_help, args=(work, *some), daemon=True) for some in arguments[1:]]
        for helper in helpers:
            helper.start()
        try:
            with _seated(*arguments[0]) as group:
                yield group
        finally:
            torch.set_num_threads(threads)
            for helper in helpers:
                helper.join(END_SECONDS)
                helper.kill()


@contextmanager
def _seated(rank: int, count: int, device: str, meeting: str, threads: int) -> Iterator[Group]:
    torch.set_num_threads(threads)  # else each takes all cores, and every operation waits for the slowest
    with joined(rank, count, local_rank=rank, device=device, meeting=meeting) as group:
        yield group


def _help(work: Callable[..., Any], *place: Any) -> None:
    """What another process does from its start to its end. What a user can mend was left for the first to tell."""
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    with suppress(JobError, StopRequested), _seated(*place) as group:
        work(group=group)


def _end_with_the_first() -> None:
    first = parent_process()
    assert first is not None
    first.join()
    os._exit(1)
