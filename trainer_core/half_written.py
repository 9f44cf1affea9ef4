"""Temporary files in a folder that many processes write into: which of them somebody is still writing.

A writer holds its file locked, and the system lets go when the process dies, however it dies. So a temporary file that can be
locked is nobody's. Windows has another way to the same end: it removes no file that is open. Where a file system knows no
locks, age decides. Needs no torch.
"""

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

HIDDEN, CLAIM = ".unfinished-", "claim"  # a folder for what is not whole yet, and the file in it that its writer holds
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


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A name in a hidden folder in this one, for a file or a folder that is renamed out of it once it is whole; what is not is
    gone afterwards. First takes away what processes left here that died. `folder` is made where it is missing."""
    clear_unfinished(folder)
    place = folder / f"{HIDDEN}{uuid.uuid4().hex[:12]}"
    place.mkdir(parents=True)
    try:
        with (place / CLAIM).open("wb") as file:
            claim(file)
            yield place / "new"
    finally:
        shutil.rmtree(place, ignore_errors=True)


def clear_unfinished(folder: Path) -> None:
    """Take away what `unfinished` left in this folder, itself, in processes that died; nothing where it cannot be looked at."""
    left: list[Path] = []
    with suppress(OSError):  # its drive is away
        left += folder.glob(f"{HIDDEN}*/{CLAIM}")
    for path in left:
        with suppress(OSError):  # somebody has it open, or was faster
            if _is_abandoned(path):
                path.unlink()
                shutil.rmtree(path.parent)


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
