"""Temporary files in a folder that many processes write into, the cache: which of them somebody is still writing.

A writer holds its file locked, and the system lets go when the process dies, however it dies. So a temporary file that can be
locked is nobody's. Windows has another way to the same end: it removes no file that is open. Where a file system knows no
locks, age decides. Needs no torch.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STALE_SECONDS = 86_400  # without locks, a temporary file of this age is taken for a dead process'


def claim(file: IO[bytes]) -> None:
    """Say, until the file is closed, that somebody writes it."""
    if fcntl is not None:
        with suppress(OSError):  # no locks on this file system
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def clear_abandoned(folder: Path) -> None:
    """Remove the temporary files below the folder that processes left which died while they wrote."""
    for path in folder.rglob("*.tmp"):
        with suppress(OSError):  # somebody has it open, or was faster
            if _is_abandoned(path):
                path.unlink()


def _is_abandoned(path: Path) -> bool:
    if fcntl is None:
        return True
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return time.time() - os.fstat(file.fileno()).st_mtime > STALE_SECONDS
    return True
