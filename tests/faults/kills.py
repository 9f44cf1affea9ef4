"""SIGKILL at random moments: after each of them the next start goes on, and the run ends as if nothing had happened.

Random over time alone would put most kills into the few phases that take long. So a stage is drawn first, and the moment within
it; a run is killed again and again until it came to its end, and the next one begins. A stage that a run has behind it does not
come again: then that life ends by itself, and only the kills count.
"""

import random
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from typing import Any

import psutil

from .harmed import Harmed, differences, leftovers, said, start
from .stages import Stage, Watch, stages_of

LONGEST_LIFE = 300.0


def kill_many(straight: Harmed, kills: int, seed: int) -> dict[str, Any]:
    """So many kills of trainers; how the runs ended, held against that which was left alone."""
    began = time.monotonic()
    stages, dice = stages_of(straight), random.Random(seed)
    report = {"kills": 0, "resumed": 0, "byte_equal": 0, "orphans": 0, "runs": 0, "leftovers": [], "problems": []}
    died_in: Counter = Counter()
    while report["kills"] < kills:
        harmed = straight.beside(f"killed-{report['runs']}")
        outcome = kill_until_done(harmed, stages, dice, kills - report["kills"], died_in)
        for name in ("kills", "resumed", "orphans"):
            report[name] += outcome[name]
        problems = outcome["problems"] or differences(harmed, straight)
        report["byte_equal"] += 0 if problems else outcome["kills"]
        report["problems"] += problems
        report["leftovers"] += leftovers(harmed.out)
        report["runs"] += 1
    is_kept = report["kills"] == report["resumed"] == report["byte_equal"] and not (report["orphans"] or report["leftovers"])
    return report | {"died_in": dict(died_in.most_common()), "seconds": round(time.monotonic() - began, 1), "kept": is_kept}


def kill_until_done(harmed: Harmed, stages: list[Stage], dice: random.Random, most: int, died_in: Counter) -> dict[str, Any]:
    """One run from its beginning to its end, killed at most so often on the way."""
    outcome: dict[str, Any] = {"kills": 0, "resumed": 0, "orphans": 0, "problems": []}
    while True:
        stage = dice.choice(stages) if outcome["kills"] < most else None
        moment = dice.uniform(0, stage.seconds) if stage else 0.0
        child = start(harmed)
        family, where = live(child, harmed, stage, moment)
        child.join(LONGEST_LIFE)
        if child.exitcode not in (0, -9):
            outcome["problems"].append(f"exit code {child.exitcode}: {said(harmed)}")
            return outcome
        outcome["resumed"] = outcome["kills"]  # this start has gone on after all kills before it
        outcome["orphans"] += sum(process.is_running() for process in family)
        if child.exitcode == 0:
            return outcome
        died_in[where] += 1
        outcome["kills"] += 1


def live(child: BaseProcess, harmed: Harmed, stage: Stage | None, moment: float) -> tuple[list[psutil.Process], str]:
    """Kill the child so long after the stage has begun, if it does; the processes that it had started, and where it died."""
    watch = Watch(harmed)
    if stage is None or not watch.until(child, stage.name):
        return [], ""
    child.join(moment)
    if not child.is_alive():
        return [], ""
    family = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    child.join()
    return family, watch.last()
