"""Reads the batches of coming steps ahead of the training, so that it need not wait for the disk.

One thread, a few steps ahead, and no state that matters: what is given for a number is what `read` gives for it, whatever
was asked before. Asking for another number than the next (after a resume, or to look ahead) drops what was read for nothing
and goes on from there. What `read` raises is raised where its result is asked for, with the traceback of the thread.

The batches are not pinned: noise is added on the host, so it is not they that are copied to the card.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from .aside import threads_aside

Read = TypeVar("Read")


class Loader(Generic[Read]):
    """What `read` gives for these numbers, in a `with`, which ends the thread; at most `ahead` are held before they are used.

    `seconds_waited` is how long they were waited for, all together.
    """

    def __init__(self, read: Callable[[int], Read], numbers: range, ahead: int):
        self._read = read
        self._end = numbers.stop
        self._ahead = ahead
        self._coming: dict[int, Future[Read]] = {}
        self._thread = threads_aside(1, "batches")
        self.seconds_waited = 0.0
        self._have_read(numbers[:ahead])

    def __enter__(self) -> "Loader[Read]":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, number: int) -> Read:
        """That of this number, at once if it is read already."""
        began = time.perf_counter()
        if number not in self._coming:
            self._have_read(range(number, number + 1))
        found = self._coming[number].result()
        self.seconds_waited += time.perf_counter() - began
        self._have_read(range(number + 1, min(number + 1 + self._ahead, self._end)))
        return found

    def _have_read(self, numbers: range) -> None:
        """These are to be read, and no others any more."""
        for stale in self._coming.keys() - set(numbers):
            self._coming.pop(stale).cancel()
        for number in numbers:
            if number not in self._coming:
                self._coming[number] = self._thread.submit(self._read, number)
