"""Who may stop a run: its control file, Ctrl-C or a termination signal, and the death of the program that started it.

A stop is never abrupt: the loop asks between steps, saves, and leaves. A second Ctrl-C is Python's usual one.
"""

import os
import signal
import threading

from .run_dir import RunDir

STDIN = 0


class StopWatch:
    """Call it: True from the first wish to stop on."""

    def __init__(self, run_dir: RunDir):
        self._run_dir = run_dir
        self._wanted = threading.Event()

    def __call__(self) -> bool:
        if self._run_dir.take_command() == "stop":
            self._wanted.set()
        return self._wanted.is_set()

    def watch_signals(self) -> None:
        """Ctrl-C and termination ask to stop; a second Ctrl-C interrupts at once."""

        def on_signal(number: int, frame: object) -> None:
            self._wanted.set()
            signal.signal(signal.SIGINT, signal.default_int_handler)

        signal.signal(signal.SIGINT, on_signal)
        signal.signal(signal.SIGTERM, on_signal)

    def watch_stdin(self) -> None:
        """The end of standard input asks to stop: a parent that holds the other end of the pipe has died."""

        def read_to_end() -> None:
            while os.read(STDIN, 4096):  # not sys.stdin: its lock, held here, would abort the interpreter's shutdown
                pass
            self._wanted.set()

        threading.Thread(target=read_to_end, daemon=True).start()
