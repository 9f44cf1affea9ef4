"""A week in small: twenty thousand steps with saves, pictures, pauses, stops and resumes; memory, file handles and step time.

Each stop ends a process and the next start goes on, so a process lives for a part of the steps. What it holds is looked at
every second. It is warm once it has saved, pictured, evaluated and paused, for each brings code and buffers with it that stay:
from then on the last tenth of the looks is held against the first, by the median, and a line is laid through all of them.
Memory is the process's own, without the pages of files, which the system lends.

Step time: two processes with the same work differ by a tenth, and a machine is not equally fast twice. So when all steps are
done the same job begins anew beside it, and short lives of the young run and of the old one take turns. Each life's step is the
median of its steps, and `old_to_young` the median of the pairs' ratios.
"""

import contextlib
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
WARMING = {"checkpoint", "sample", "evaluation", "paused"}  # events
LOOK_SECONDS = 1.0
WISHES = ((SAVE,), (SAMPLE,), (PAUSE, CONTINUE))
STEPS_BETWEEN = 100  # two wishes
MOST_GROWTH, MOST_SLOWER = 0.02, 0.05
PAIRS, STEPS_OF_A_PAIR, STEPS_TO_WARM = 21, 80, 20


class Look(NamedTuple):
    """What a process held after so many steps."""

    step: int
    bytes: int
    handles: int
    threads: int


class Life(NamedTuple):
    """The looks at one process, once it was warm."""

    looks: list[Look]

    @property
    def memory(self) -> list[int]:
        return [look.bytes for look in self.looks]

    @property
    def growth(self) -> float:
        """By which share its memory was above that at the beginning, at the end."""
        return statistics.median(tenth(self.memory, last=True)) / statistics.median(tenth(self.memory)) - 1

    @property
    def slope(self) -> float:
        """Bytes a step, of a line through all looks."""
        return statistics.linear_regression([look.step for look in self.looks], self.memory).slope

    @property
    def more_handles(self) -> int:
        """How many more files it held all the time at the end; one that is open for a moment is none of them."""
        handles = [look.handles for look in self.looks]
        return min(tenth(handles, last=True)) - min(tenth(handles))


def soak(folder: Path, steps: int) -> dict[str, Any]:
    """Train so many steps in a few lives; what came of it."""
    many = {"max_train_steps": steps + 2 * (1 + PAIRS) * STEPS_OF_A_PAIR, "checkpoint_step_interval": 500, "log_interval": 100}
    harmed = make_harmed(folder, small=True, **many)
    began, lives = time.monotonic(), []
    for number in range(1, LIVES + 1):
        lives.append(live(harmed, steps * number // LIVES))
    pace, ratios = step_seconds(harmed.run_dir, steps), old_to_young(harmed)
    events = [event["event"] for event in EventReader(harmed.run_dir.events_path).new()]
    is_kept = (
        max(life.growth for life in lives) < MOST_GROWTH
        and max(life.more_handles for life in lives) <= 0
        and statistics.median(ratios) < 1 + MOST_SLOWER
    )
    return {
        "steps": steps,
        "lives": LIVES,
        "checkpoints": events.count("checkpoint"),
        "pictures": events.count("sample"),
        "paused": events.count("paused"),
        "warm_from": [life.looks[0].step for life in lives],
        "own_mib": [round(statistics.median(tenth(life.memory, last=True)) / 2**20, 1) for life in lives],
        "memory_growth": [round(life.growth, 4) for life in lives],
        "kib_per_1000_steps": [round(1000 * life.slope / 1024, 1) for life in lives],
        "handles": [min(tenth([look.handles for look in life.looks], last=True)) for life in lives],
        "more_handles": [life.more_handles for life in lives],
        "threads": [life.looks[-1].threads for life in lives],
        "step_ms": [round(1000 * value, 2) for value in pace],
        "old_to_young": round(statistics.median(ratios), 4),
        "pairs": sorted(round(value, 3) for value in ratios),
        "leftovers": leftovers(harmed.out),
        "seconds": round(time.monotonic() - began, 1),
        "kept": is_kept,
    }


def live(harmed: Harmed, until: int) -> Life:
    """One start, stopped after that step; now and then it is asked for something meanwhile."""
    child, run_dir, looks, wishes, told = start(harmed), harmed.run_dir, [], 0, set()
    process, reader, step, first = psutil.Process(child.pid), EventReader(run_dir.events_path, from_end=True), 0, None
    is_asked = False
    while child.is_alive():
        for event in reader.new():
            step = event["step"] if event["event"] == "step" else step
            if step:
                told.add(event["event"])
        if 0 < step < harmed.steps:
            first = first or step
            if told >= WARMING:
                with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                    looks.append(look_at(process, step))
            if step > first + STEPS_BETWEEN * (wishes + 1) and wishes < 3 * len(WISHES):
                for wish in WISHES[wishes % len(WISHES)]:
                    run_dir.ask(wish)
                wishes += 1
            if step >= until and not is_asked:
                run_dir.ask(STOP)
                is_asked = True
        child.join(LOOK_SECONDS)
    assert child.exitcode == 3, said(harmed)
    assert len(looks) > 1, "it ended before it was warm: more steps"
    return Life(looks)


def look_at(process: psutil.Process, step: int) -> Look:
    held = process.memory_info()
    return Look(step, held.rss - held.shared, process.num_fds(), process.num_threads())


def tenth(values: list, *, last: bool = False) -> list:
    """The first of ten parts of these, or the last one."""
    count = max(len(values) // 10, 1)
    return values[-count:] if last else values[:count]


def old_to_young(harmed: Harmed) -> list[float]:
    """How long a step of this run takes, in terms of one of the same job that begins; by pairs of lives."""
    young = harmed.beside("young")
    return [step_of_a_life(harmed) / step_of_a_life(young) for _ in range(PAIRS)]


def step_of_a_life(harmed: Harmed) -> float:
    """The median step, in seconds, of one start that is stopped after some steps."""
    child, reader, told, is_asked = start(harmed), EventReader(harmed.run_dir.events_path, from_end=True), [], False
    while child.is_alive():
        told += [event for event in reader.new() if event["event"] == "step"]
        if len(told) >= STEPS_OF_A_PAIR and not is_asked:
            harmed.run_dir.ask(STOP)
            is_asked = True
        child.join(0.02)
    assert child.exitcode == 3, said(harmed)
    return statistics.median(event["seconds"] for event in told[STEPS_TO_WARM:])


def step_seconds(run_dir: RunDir, steps: int) -> list[float]:
    """The median step of each life."""
    told = {event["step"]: event["seconds"] for event in EventReader(run_dir.events_path).new() if event["event"] == "step"}
    assert told.keys() >= set(range(1, steps + 1)), "steps are missing"
    share = steps // LIVES
    return [statistics.median(told[share * life + step] for step in range(1, share + 1)) for life in range(LIVES)]
