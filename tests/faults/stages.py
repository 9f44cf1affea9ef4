"""Where a running trainer is: told by its events, and by the files that it is just writing."""

import time
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import NamedTuple

from trainer_core.events import Event, EventReader

from .harmed import Harmed

SAVE, FIRST = "inside a save", "the first moment"
FIRST_SECONDS, SAVE_SECONDS = 0.05, 0.03
LOOK_SECONDS = 0.001


class Stage(NamedTuple):
    """A part of a run by the name that events give it, and how long it usually is at a stretch."""

    name: str
    seconds: float


class Watch:
    """Follows a start of this run from here on; `where` is the stage that it is in."""

    def __init__(self, harmed: Harmed):
        self._reader = EventReader(harmed.run_dir.events_path, from_end=True)
        self._harmed, self._old = harmed, half_written(harmed)
        self.where = FIRST

    def until(self, child: BaseProcess | Thread, stage: str) -> bool:
        """Wait for the stage to begin; False where the child ends before."""
        begun = stage == FIRST
        while child.is_alive() and not begun:
            begun = self._is_in(stage)
            if not begun:
                time.sleep(LOOK_SECONDS)
        return begun

    def last(self) -> str:
        """The stage in which the child has died."""
        self._look()
        return SAVE if half_written(self._harmed) - self._old else self.where

    def _is_in(self, stage: str) -> bool:
        if stage == SAVE:
            return bool(half_written(self._harmed) - self._old)
        self._look()
        return self.where == stage

    def _look(self) -> None:
        for event in self._reader.new():
            self.where = stage_of(event, self.where)


def stages_of(straight: Harmed) -> list[Stage]:
    """The stages of the undisturbed run."""
    longest: dict[str, float] = {}
    events = list(EventReader(straight.run_dir.events_path).new())
    name, since = FIRST, events[0]["time"]
    for event in events:
        longest[name] = max(longest.get(name, 0.0), event["time"] - since)
        if (now := stage_of(event, name)) != name:
            name, since = now, event["time"]
    told = [Stage(*item) for item in longest.items() if item[0] != FIRST]
    return [*told, Stage(FIRST, FIRST_SECONDS), Stage(SAVE, SAVE_SECONDS)]


def stage_of(event: Event, before: str) -> str:
    """Where a run is that has told this last."""
    if event["event"] == "phase":
        return event["phase"]
    return "train" if event["event"] in ("started", "step") else before


def half_written(harmed: Harmed) -> set[tuple[str, int]]:
    """Files and folders on their way; the number tells one from an older of its name."""
    found = set()
    for pattern in ("*/*.tmp", "*/checkpoints/*.partial", "cache/*/*.tmp"):
        for path in harmed.out.glob(pattern):
            try:
                found.add((str(path), path.stat().st_ino))
            except FileNotFoundError:  # whole by now
                continue
    return found
