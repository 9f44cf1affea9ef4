"""A week in small: twenty thousand steps with saves, pictures, pauses, stops and resumes; memory, file handles and step time.

Each stop ends a process and the next start goes on, so a process lives for a part of the steps. What it holds is looked at
every second, and its last tenth compared with the time after its warm-up; the steps likewise, by the median, in each life and
from the first life to the last.
"""

import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from trainer_core.commands import CONTINUE, PAUSE, SAMPLE, SAVE, STOP
from trainer_core.events import EventReader
from trainer_core.run_dir import RunDir

from .harmed import Harmed, leftovers, make_harmed, said, start

LIVES = 4
WARM_UP, WARM, END = 0.2, 0.3, 0.9  # shares of a life: memory is flat from here, is measured until there, and after that
LOOK_SECONDS = 1.0
WISHES = ((SAVE,), (SAMPLE,), (PAUSE, CONTINUE))
STEPS_BETWEEN = 100  # two wishes
MOST_GROWTH, MOST_SLOWER = 0.02, 0.05


class Look(NamedTuple):
    """What a process held after so many steps."""

    step: int
    bytes: int
    handles: int
    threads: int


def soak(folder: Path, steps: int) -> dict[str, Any]:
    """Train so many steps in a few lives; what came of it."""
    many = {"max_train_steps": steps, "checkpoint_step_interval": 500, "log_interval": 100}
    harmed = make_harmed(folder, small=True, **many)
    began, lives = time.monotonic(), []
    for number in range(1, LIVES + 1):
        lives.append(life(harmed, steps * number // LIVES if number < LIVES else None))
    seconds = step_seconds(harmed.run_dir)
    assert len(seconds) == steps, "steps are missing"
    share = steps // LIVES
    pace = [statistics.median(seconds[share * n : share * (n + 1)]) for n in range(LIVES)]
    memory = [growth([look.bytes for look in looks], statistics.median) for looks in lives]
    handles = [growth([look.handles for look in looks], max) for looks in lives]
    slower = [growth(seconds[share * n : share * (n + 1)], statistics.median) for n in range(LIVES)]
    events = [event["event"] for event in EventReader(harmed.run_dir.events_path).new()]
    return {
        "steps": steps,
        "lives": LIVES,
        "checkpoints": events.count("checkpoint"),
        "pictures": events.count("sample"),
        "paused": events.count("paused"),
        "resident_mib": [round(statistics.median(part(looks, END, 1.0)) / 2**20, 1) for looks in map(bytes_of, lives)],
        "memory_growth": [round(value, 4) for value in memory],
        "handles": [looks[-1].handles for looks in lives],
        "handle_growth": [round(value, 4) for value in handles],
        "threads": [looks[-1].threads for looks in lives],
        "step_ms": [round(1000 * value, 2) for value in pace],
        "step_growth": [round(value, 4) for value in slower],
        "leftovers": leftovers(harmed.out),
        "seconds": round(time.monotonic() - began, 1),
        "kept": max(memory) < MOST_GROWTH and max(handles) <= 0 and pace[-1] / pace[0] < 1 + MOST_SLOWER,
    }


def life(harmed: Harmed, until: int | None) -> list[Look]:
    """One start, stopped after that step, if there is one; now and then it is asked for something meanwhile."""
    child, run_dir, looks, wishes = start(harmed), harmed.run_dir, [], 0
    process, reader, step, first = psutil.Process(child.pid), EventReader(run_dir.events_path, from_end=True), 0, None
    while child.is_alive():
        step = max((event["step"] for event in reader.new() if event["event"] == "step"), default=step)
        if 0 < step < harmed.steps:
            first = first or step
            looks.append(Look(step, process.memory_info().rss, process.num_fds(), process.num_threads()))
            if step > first + STEPS_BETWEEN * (wishes + 1) and wishes < 3 * len(WISHES):
                for wish in WISHES[wishes % len(WISHES)]:
                    run_dir.ask(wish)
                wishes += 1
            if until is not None and step >= until:
                run_dir.ask(STOP)
                until = None
        child.join(LOOK_SECONDS)
    assert child.exitcode in (0, 3), said(harmed)
    return looks


def bytes_of(looks: list[Look]) -> list[int]:
    return [look.bytes for look in looks]


def part(values: list, begin: float, end: float) -> list:
    """These from one share of them to another."""
    return values[int(len(values) * begin) : max(int(len(values) * end), int(len(values) * begin) + 1)]


def growth(values: list, kind: Any) -> float:
    """By which share the last are above those after the warm-up."""
    return kind(part(values, END, 1.0)) / kind(part(values, WARM_UP, WARM)) - 1


def step_seconds(run_dir: RunDir) -> list[float]:
    """How long each step took, the last time that it was done."""
    told = {event["step"]: event["seconds"] for event in EventReader(run_dir.events_path).new() if event["event"] == "step"}
    return [told[step] for step in sorted(told)]
