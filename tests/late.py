"""What a second process does that is late; apart from the tests, so that it imports little."""

import time
from pathlib import Path

from trainer_core.processes import Group

LATE_SECONDS = 1.0


def come_late(path: Path, group: Group) -> None:
    time.sleep(LATE_SECONDS)
    path.write_bytes(b"")
    group.wait()
