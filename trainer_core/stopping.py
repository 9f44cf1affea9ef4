"""Who may stop a run: its control file, Ctrl-C or a termination signal, and the death of the program that started it.

A stop is never abrupt: the loop asks between steps, saves, and leaves. A second Ctrl-C is Python's usual one.
"""

import signal
import sys
import threading

from .run_dir import RunDir


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
            sys.stdin.buffer.read()
            self._wanted.set()

        threading.Thread(target=read_to_end, daemon=True).start()
