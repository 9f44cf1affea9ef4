"""Where a run keeps its things, whom it tells, and who may tell it: passed as one value through the stages."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .commands import Command
from .errors import StopRequested
from .events import EventLog
from .run_dir import RunDir


@dataclass(frozen=True)
class RunContext:
    """`should_stop` stays true from the first wish to stop on; `next_command` gives what else is wished for."""

    run_dir: RunDir
    cache_dir: Path
    events: EventLog
    should_stop: Callable[[], bool]
    next_command: Callable[[], Command | None] = lambda: None

    def stop_if_wanted(self, step: int) -> None:
        """Leave, if a stop was asked for; the caller has saved all that is worth keeping."""
        if self.should_stop():
            self.events.emit("stopped", step=step)
            raise StopRequested(step, self.run_dir.root)

    def progress(self, phase: str) -> Callable[[int, int], None]:
        """A reporter of (done, total) for this phase."""
        return lambda done, total: self.events.phase(phase, done, total)
