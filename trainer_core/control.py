"""Who may tell a run what to do: its control files, Ctrl-C or a termination signal, the death of the program that started it.

Nothing is abrupt: the loop asks between steps. Save, sample, pause and continue are obeyed in their order; a stop, from
wherever it comes, stays in force once it is wished for. A second Ctrl-C is Python's usual one.
"""

import math
import signal
import threading
import time
from collections import deque

from .commands import STOP, Command
from .lifeline import wait_for_the_end
from .run_dir import RunDir

LOOK_SECONDS = 0.05  # between two looks at the disk, however often it is asked


class Control:
    """Call it: True from the first wish to stop on. `next` gives the other commands, one by one. Of several processes one alone
    is given the run folder, and so hears what is asked for there."""

    def __init__(self, run_dir: RunDir | None):
        self._run_dir = run_dir
        self._stop = threading.Event()
        self._waiting: deque[Command] = deque()
        self._looked = -math.inf

    def __call__(self) -> bool:
        if self._run_dir is None or time.monotonic() - self._looked < LOOK_SECONDS:
            return self._stop.is_set()
        self._looked = time.monotonic()
        for command in self._run_dir.take_commands():
            if command.name == STOP:
                self._stop.set()
            else:
                self._waiting.append(command)
        return self._stop.is_set()

    def next(self) -> Command | None:
        """The oldest command that is still to be obeyed, or None."""
        return self._waiting.popleft() if self._waiting else None

    def watch_signals(self) -> None:
        """Ctrl-C and termination ask to stop; a second Ctrl-C interrupts at once."""

        def on_signal(number: int, frame: object) -> None:
            self._stop.set()
            signal.signal(signal.SIGINT, signal.default_int_handler)

        signal.signal(signal.SIGINT, on_signal)
        signal.signal(signal.SIGTERM, on_signal)

    def watch_stdin(self) -> None:
        """The end of standard input asks to stop: a parent that holds the other end of the pipe has died."""

        def wait() -> None:
            wait_for_the_end()
            self._stop.set()

        threading.Thread(target=wait, daemon=True).start()
