"""Memory that a piece of work takes: the most anonymous memory of this process while it runs, asked from the kernel.

Anonymous memory is what a process cannot give back: its own tensors, not the pages of mapped files, which the system may drop.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/status")
PAUSE = 0.005  # seconds between two looks


def anonymous_bytes() -> int:
    """What this process holds now. Linux only."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """Yields a record that holds `peak_anonymous_bytes` and `seconds` once the work in here is done."""
    seen, done = {"peak_anonymous_bytes": anonymous_bytes()}, threading.Event()

    def look() -> None:
        while not done.wait(PAUSE):
            seen["peak_anonymous_bytes"] = max(seen["peak_anonymous_bytes"], anonymous_bytes())

    watcher, began = threading.Thread(target=look, daemon=True), time.monotonic()
    watcher.start()
    try:
        yield seen
    finally:
        seen["seconds"] = round(time.monotonic() - began, 2)
        done.set()
        watcher.join()
