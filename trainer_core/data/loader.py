"""Reads batches ahead of the training, so that it need not wait for the disk.

One thread, a few batches ahead, and no state that matters: what is given for a number is what `read` gives for it, whatever
was asked before. Asking for another number than the next (after a resume, or to look ahead) drops what was read for nothing
and goes on from there. What `read` raises is raised where its batch is asked for, with the traceback of the thread.

The batches are not pinned: noise is added on the host, so it is not they that are copied to the card.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor

from .batches import Batch, ReadBatch


class Loader:
    """The batches of these numbers, in a `with`, which ends the thread; at most `ahead` of them are held before they are used.

    `seconds_waited` is how long they were waited for, all together.
    """

    def __init__(self, read: ReadBatch, numbers: range, ahead: int):
        self._read = read
        self._end = numbers.stop
        self._ahead = ahead
        self._coming: dict[int, Future[Batch]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self.seconds_waited = 0.0
        self._have_read(numbers[:ahead])

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def batch(self, number: int) -> Batch:
        """Batch `number`, at once if it is read already."""
        began = time.perf_counter()
        if number not in self._coming:
            self._have_read(range(number, number + 1))
        batch = self._coming[number].result()
        self.seconds_waited += time.perf_counter() - began
        self._have_read(range(number + 1, min(number + 1 + self._ahead, self._end)))
        return batch

    def _have_read(self, numbers: range) -> None:
        """These are to be read, and no others any more."""
        for stale in self._coming.keys() - set(numbers):
            self._coming.pop(stale).cancel()
        for number in numbers:
            if number not in self._coming:
                self._coming[number] = self._thread.submit(self._read, number)
