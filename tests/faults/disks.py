"""Disks that may not be written, or go away under a run, and a folder that another process holds. A disk is a small tmpfs,
mounted for it; what fills one up is in `full.py`.

Mounting needs root, or the pretence of it: `unshare -rm python -m tests.faults disk`.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .harmed import Harmed, differences, finish, report_of, said, start
from .stages import Watch

SIZE = 48 << 20
DAY = 86_400


def can_mount() -> bool:
    """Whether this process may mount."""
    return os.name == "posix" and os.geteuid() == 0 and shutil.which("mount") is not None


@contextmanager
def small_disk(harmed: Harmed) -> Iterator[None]:
    """The run's folder is a disk of its own in here."""
    harmed.out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", harmed.out], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", harmed.out], check=True)


def lose_folders(straight: Harmed) -> dict[str, str]:
    """Each other misfortune of a run folder once: what the trainer said of it. AssertionError where a promise is broken."""
    return {
        "read-only from the beginning": read_only(straight),
        "read-only in the middle": read_only(straight, begun=True),
        "taken away while it trains": lost(straight),
        "all files are of tomorrow": of_tomorrow(straight),
        "two processes": second_process(straight),
    }


def read_only(straight: Harmed, *, begun: bool = False) -> str:
    """Refused with the reason; goes on once it may be written."""
    harmed = straight.beside(f"read-only-{begun}")
    with small_disk(harmed):
        if begun:
            killed_in(harmed, "train")
        subprocess.run(["mount", "-o", "remount,ro", harmed.out], check=True)
        code, message = finish(harmed), str(report_of(harmed).get("error"))
        assert code == 2 and "nothing may be written there" in message, said(harmed)
        subprocess.run(["mount", "-o", "remount,rw", harmed.out], check=True)
        assert finish(harmed) == 0 and not differences(harmed, straight), said(harmed)
    return message


def lost(straight: Harmed) -> str:
    """The drive goes away in the middle: nothing is written into the empty place that it leaves."""
    harmed, drive = straight.beside("lost"), straight.beside("drive").out
    harmed.out.mkdir()
    drive.mkdir()
    subprocess.run(["mount", "--bind", drive, harmed.out], check=True)
    child = start(harmed)
    assert Watch(harmed).until(child, "train"), said(harmed)
    subprocess.run(["umount", "-l", harmed.out], check=True)
    child.join()
    message = str(report_of(harmed).get("error"))
    assert child.exitcode == 2 and "is gone" in message, said(harmed)
    assert not list(harmed.out.glob("*/*")), "it wrote into the empty place"
    subprocess.run(["mount", "--bind", drive, harmed.out], check=True)
    try:
        assert finish(harmed) == 0 and not differences(harmed, straight), said(harmed)
    finally:
        subprocess.run(["umount", "-l", harmed.out], check=True)
    return message


def of_tomorrow(straight: Harmed) -> str:
    """The clock was set back: every file that the run has written is of the future."""
    harmed = straight.beside("tomorrow")
    killed_in(harmed, "train")
    for path in harmed.out.rglob("*"):
        os.utime(path, (time.time() + DAY,) * 2)
    assert finish(harmed) == 0 and not differences(harmed, straight), said(harmed)
    return "it goes on"


def second_process(straight: Harmed) -> str:
    """The second is refused by the first one's name; a lock that a killed process leaves is nobody's."""
    harmed, late = straight.beside("owned"), straight.beside("owned")._replace(starter="-late")
    child = start(harmed)
    assert Watch(harmed).until(child, "train"), said(harmed)
    os.kill(child.pid, signal.SIGSTOP)  # or its few steps could be over before the second one comes
    code, message = finish(late), str(report_of(late).get("error"))
    child.kill()
    child.join()
    assert code == 2 and f"number {child.pid} on " in message, said(late)
    assert (harmed.run_dir.root / "lock").exists() and harmed.run_dir.owner_path.exists()
    with harmed.run_dir.owned():
        return message


def killed_in(harmed: Harmed, stage: str) -> None:
    """A start that is killed as soon as it has come so far."""
    child = start(harmed)
    assert Watch(harmed).until(child, stage), said(harmed)
    child.kill()
    child.join()
