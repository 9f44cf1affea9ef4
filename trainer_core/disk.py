"""When a disk does not take what it should: what happened, what helps, and that what was saved is whole.

Every write of a run goes to a temporary name first, so whatever fails, the checkpoints before it stay, and the run goes on from
the last one once there is room, or the right, or the drive again.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import JobError
from .run_dir import RunDir

FULL = ("the disk is full", "Make room")
READ_ONLY = ("nothing may be written there", "Give the right to it, or choose another output folder")
GONE = ("the disk or network drive is gone, or faulty", "Bring it back")
CAUSES = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: ("your share of the disk (quota) is used up", "Make room"),
    errno.EROFS: READ_ONLY,
    errno.EACCES: READ_ONLY,
    errno.EPERM: READ_ONLY,
    errno.EIO: GONE,
    errno.ENODEV: GONE,
    errno.ENXIO: GONE,
    errno.ENOTCONN: GONE,
    errno.ESTALE: GONE,
    errno.ETIMEDOUT: GONE,
    errno.EHOSTDOWN: GONE,
    errno.ENOENT: ("a file or folder of the run has gone", "Bring it back"),
}


@contextmanager
def disk_watched(run_dir: RunDir) -> Iterator[None]:
    """Turns the disk's refusal in here to take or give something into a JobError that says what helps."""
    try:
        yield
    except OSError as error:
        if error.errno not in CAUSES:
            raise
        what, mend = CAUSES[error.errno]
        place = error.filename or run_dir.root
        raise JobError(
            f"{what} ({place}: {error.strerror}). {mend}, and start again: what was saved is whole, and the run goes on from it"
        ) from error
