"""Looks at a hundred thousand files: by processes of their own, as threads would wait for each other.

A look at a small picture is 0.2 ms of Python, which one thread of a process at a time can run: two threads take as long as one.
So where many files are new, each thread that looks has a process that does it, and gets its answers as lines of JSON. Such a
process knows no more of the environment than it needs, and ends when its input does, however its owner ends. Where one cannot
be started, or has died, the thread looks itself.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Event

from .facts import Unreadable, look_at
from .sample import Facts, Reject

Told = tuple[Facts | str, bool]  # the facts, or the reason against the file; and whether that lasts as long as its bytes

SMALL = 2**18  # bytes: in the look at a larger file the decoder takes most of the time, and that holds up no other thread
MANY = 5000  # small files: so many take longer than the start of the processes does
CORE = Path(__file__).parents[2]
# nothing is looked for in the working directory, which is ""
BOOT = "import sys; sys.path[:] = [sys.argv[1], *filter(None, sys.path)]; from trainer_core.data.lookers import serve; serve()"
NEEDED = frozenset(
    {
        "PATH",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "SYSTEMROOT",
        "TEMP",
        "TMP",
        "TMPDIR",
        "PYTHONHOME",
        "PYTHONDONTWRITEBYTECODE",
    }
)


def look(file: str) -> Told:
    """One look, in this process."""
    try:
        return look_at(Path(file)), True
    except Reject as reject:
        return str(reject), not isinstance(reject, Unreadable)


class Lookers:
    """One process for each of so many threads, where many of the files are small; use as a context.

    Large files are looked at in this process, where the largest wait for each other (`facts.py`).
    """

    def __init__(self, sizes: Iterable[int], threads: int):
        is_worth_it = sum(size <= SMALL for size in sizes) >= MANY
        self._all = [_start() if is_worth_it else None for _ in range(threads)]
        self._idle: SimpleQueue[_Looker | None] = SimpleQueue()
        for looker in self._all:
            self._idle.put(looker)
        self._left = Event()

    def __enter__(self) -> "Lookers":
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()
        for looker in filter(None, self._all):
            looker.communicate()

    def leave(self) -> None:
        """Whoever looks ends with the file that it is at."""
        self._left.set()
        for looker in filter(None, self._all):
            looker.kill()

    def look_at_each(self, files: Sequence[tuple[str, int]]) -> list[Told]:
        """What each of these files, of so many bytes, is; fewer once they are left. By no more threads than were said."""
        paths, looker = [path for path, _ in files], self._idle.get()
        try:
            if looker and max(size for _, size in files) <= SMALL and not self._left.is_set():
                if told := _ask(looker, paths):
                    return told
                looker = None
            return [look(path) for path in paths if not self._left.is_set()]
        finally:
            self._idle.put(looker)


_Looker = subprocess.Popen[str]


def _start() -> _Looker | None:
    with suppress(OSError):
        return subprocess.Popen(
            [sys.executable, "-c", BOOT, str(CORE)],
            env={name: value for name, value in os.environ.items() if name.upper() in NEEDED},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # exists on Windows only, where a console would pop up
        )
    return None


def _ask(looker: _Looker, files: Sequence[str]) -> list[Told] | None:
    """Its answer; None where it has died."""
    with suppress(OSError, ValueError):
        looker.stdin.write(json.dumps(files) + "\n")
        looker.stdin.flush()
        told = json.loads(looker.stdout.readline())
        return [(what if isinstance(what, str) else Facts(*what), lasts) for what, lasts in told]
    return None


def serve() -> None:
    """What such a process does until its input ends. Ctrl-C is meant for its owner, who ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        print(json.dumps([look(file) for file in json.loads(line)]), flush=True)
