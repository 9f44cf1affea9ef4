"""Pools of threads that begin only where there is memory for them.

Python waits for a thread's first moment, and a thread that finds no memory never comes to it: the caller would wait for ever
(Python 3.11, with a limit on the address space). So what a thread takes at first is asked for by the caller, to whom a lack of
it is a MemoryError, which can be told.
"""

import mmap
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

ROOM = 32 << 20  # bytes: a stack, and what Python and C map at a time


class Threads(ThreadPoolExecutor):
    """A ThreadPoolExecutor whose `submit` raises MemoryError where no thread could begin."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **named: Any) -> Future:
        _ask_for(ROOM)
        return super().submit(work, *args, **named)


def _ask_for(size: int) -> None:
    """MemoryError where so many bytes cannot be mapped. They are let go of at once, and never touched."""
    try:
        mmap.mmap(-1, size).close()
    except OSError as error:
        raise MemoryError(
            f"there are no {size >> 20} MB of memory for another thread; close other programs that use it"
        ) from error
