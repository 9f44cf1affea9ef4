"""Where a run keeps its things, whom it tells, and who may tell it: passed as one value through the stages."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from .commands import Command
from .errors import StopRequested
from .events import EventLog
from .processes import ALONE, Group
from .run_dir import RunDir
from .saved import list_steps

REPORT_SECONDS = 0.1  # between two events of a phase


@dataclass(frozen=True)
class RunContext:
    """`should_stop` stays true from the first wish to stop on; `next_command` gives what else is wished for. Both are what this
    process knows; `agreed` is what all processes of the `group` do."""

    run_dir: RunDir
    cache_dir: Path
    events: EventLog
    should_stop: Callable[[], bool]
    next_command: Callable[[], Command | None] = lambda: None
    group: Group = ALONE

    def agreed(self) -> tuple[bool, Command | None]:
        """Whether all stop now, since one of them wishes it; if not, the oldest command, which the first process has."""
        stops = self.should_stop()
        command = None if stops else self.next_command()
        if self.group.count > 1:
            stops, is_commanded = self.group.any(stops, command is not None)
            if is_commanded:  # by the first, which alone hears of commands
                command = Command(*self.group.tell(command))
        return stops, command

    def all_stop(self) -> bool:
        """Whether any process wishes to stop."""
        return self.group.any(self.should_stop())[0]

    def stop_if_wanted(self) -> None:
        """Leave, if a stop was asked for here; the caller has saved all that is worth keeping."""
        if self.should_stop():
            self.leave()

    def leave(self) -> NoReturn:
        """End the run for now, at the newest checkpoint."""
        step = max(list_steps(self.run_dir), default=0)
        self.events.emit("stopped", step=step)
        raise StopRequested(step, self.run_dir.root)

    def progress(self, phase: str) -> Callable[[int, int], None]:
        """A reporter of (done, total) for this phase, which tells them not more often than anyone can see."""
        last, told = -math.inf, -1

        def report(done: int, total: int) -> None:
            nonlocal last, told
            is_end = done == total and told != total
            if is_end or time.monotonic() - last >= REPORT_SECONDS:
                self.events.phase(phase, done, total)
                last, told = time.monotonic(), done

        return report

    def stoppable(self, phase: str) -> Callable[[int, int], None]:
        """The same, which also obeys a wish to stop each time: for work whose fruits so far are kept, or cost little."""
        report = self.progress(phase)

        def report_or_leave(done: int, total: int) -> None:
            report(done, total)
            self.stop_if_wanted()

        return report_or_leave
