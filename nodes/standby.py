"""The trainer that waits for the next run with its libraries loaded, so that the run begins at once.

There is one at most, and for ten minutes at most. It holds memory of the host, none of a card, and what any training process
gets of the environment. A training takes it where there is one that fits, and starts a process of its own where there is none,
or where it dies of what it is told: that costs the ten seconds of loading, and nothing else.

Nothing here is kept on disk. What it prints while it loads is in this process's memory until it begins, and then in the log of
the run; if it dies before, in ComfyUI's log.
"""

import json
import logging
import os
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import BinaryIO

import psutil

from ..trainer_core.standby import READY, TAKEN
from .environment import child_environment
from .process import start

MODULE = "trainer_core.standby"
MOST_SECONDS = 600.0
LEAST_MEMORY = 4 << 30  # bytes of the host's that are free
LOOK_SECONDS = 0.1
MOST_LINES = 100
NONE, LOADING, IS_READY = "none", "loading", "ready"

log = logging.getLogger(__name__)


class Waiting:
    """A process that waits, and what it has said."""

    def __init__(self, environment: Mapping[str, str]):
        self.environment = environment
        self.process = start([], subprocess.PIPE, environment, module=MODULE)
        self.is_ready = False
        self._is_taken = False
        self._is_ended = False
        self._said: deque[str] = deque(maxlen=MOST_LINES)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Whether it is what a process that is started now with these variables would become."""
        return self.process.poll() is None and self.environment == environment

    def end(self) -> None:
        """At once: it has nothing to save, and hears nothing while it loads."""
        self._is_ended = True
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()

    def begin(self, words: list[str], child_log: BinaryIO, on_tick: Callable[[], None]) -> bool:
        """Whether it has taken up the command. Where it has not, for whatever reason, it is dead."""
        line = json.dumps({"words": words, "log": child_log.name}).encode() + b"\n"
        has_begun = False
        try:
            while self._listener.is_alive():  # until its output is no longer our pipe
                on_tick()
                if line and self.is_ready:  # it reads now, so that a long line does not block
                    with suppress(OSError):  # it has just died
                        os.write(self.process.stdin.fileno(), line)
                    line = b""
                self._listener.join(LOOK_SECONDS)
            child_log.write("".join(self._said).encode())
            child_log.flush()
            has_begun = self._is_taken
        finally:
            if not has_begun:
                self.end()
        return has_begun

    def _listen(self) -> None:
        with self.process.stdout as output:
            for line in output:
                text = line.decode("utf-8", "replace")
                if text.strip() == READY:
                    self.is_ready = True
                elif text.strip() == TAKEN:
                    self._is_taken = True
                elif text.strip():
                    self._said.append(text)
        if not self._is_taken and self.process.wait() and not self._is_ended:
            log.warning("the trainer that waited has died (exit code %s)\n%s", self.process.returncode, "".join(self._said))


class Standby:
    """The place of the one that waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Waiting | None = None
        self._timer: threading.Timer | None = None

    def prepare(self) -> str:
        """Have a trainer wait for ten minutes from now on. How it stands: LOADING, IS_READY, or NONE where memory is short."""
        environment = child_environment(os.environ)
        with self._lock:
            if self._waiting is not None and not self._waiting.fits(environment):
                self._vacate().end()
            if self._waiting is None:
                if psutil.virtual_memory().available < LEAST_MEMORY:
                    return NONE
                self._waiting = Waiting(environment)
            self._limit(self._waiting)
            return IS_READY if self._waiting.is_ready else LOADING

    def take(
        self,
        words: list[str],
        child_log: BinaryIO,
        environment: Mapping[str, str],
        on_tick: Callable[[], None],
    ) -> "subprocess.Popen[bytes] | None":
        """The process that waited, which has taken up this command as `process.start` would have begun it; None where there
        was none that fits, or it died. `on_tick` is called several times a second meanwhile, and may raise."""
        with self._lock:
            found = self._vacate() if self._waiting is not None else None
        if found is None:
            return None
        if not found.fits(environment):
            found.end()
            return None
        return found.process if found.begin(words, child_log, on_tick) else None

    def _vacate(self) -> Waiting:
        """Whoever waits, who does so here no longer."""
        found, self._waiting = self._waiting, None
        assert found is not None and self._timer is not None
        self._timer.cancel()
        return found

    def _limit(self, waiting: Waiting) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(MOST_SECONDS, self._retire, [waiting])
        self._timer.daemon = True
        self._timer.start()

    def _retire(self, waiting: Waiting) -> None:
        with self._lock:
            if self._waiting is waiting:
                self._vacate().end()


STANDBY = Standby()
