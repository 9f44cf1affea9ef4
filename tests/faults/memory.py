"""Host memory that runs out in each stage: from a little after its beginning the trainer may map nothing more than a little.

The limit is set from outside (prlimit), so the trainer is the one that users have. Card memory needs a card, and is not here.
"""

import random
import resource
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from typing import Any

import psutil

from trainer_core.diagnosis import diagnose

from .harmed import Harmed, differences, finish, leftovers, report_of, said, start
from .stages import FIRST, SAVE, Watch, stages_of

ROOM = (0, 1 << 20, 4 << 20, 16 << 20)  # bytes above what it holds
LONGEST = 120.0
SECONDS_IN = 0.02  # the threads of a stage have begun: one that finds no memory in its very first moment hangs Python 3.11
EXPLAINED, SURVIVED, DIAGNOSED, SILENT = "explained", "survived", "died, diagnosed", "died, undiagnosed"


def starve_all(straight: Harmed, rounds: int, seed: int) -> dict[str, Any]:
    """Each stage in so many rounds; how it ended, and whether the next start, with all memory, ends as if nothing had been."""
    dice, began = random.Random(seed), time.monotonic()
    outcomes: dict[str, Counter] = {}
    problems: list[str] = []
    for stage in [stage.name for stage in stages_of(straight) if stage.name not in (FIRST, SAVE)]:
        for number in range(rounds):
            harmed, room = straight.beside(f"starved-{stage.replace(' ', '-')}-{number}"), dice.choice(ROOM)
            ended = starve_one(harmed, stage, room)
            outcomes.setdefault(stage, Counter())[ended] += 1
            if ended == SILENT:
                problems.append(f"{stage}, {room} bytes: {said(harmed)}")
            if finish(harmed) != 0:
                problems.append(f"after {stage}: {said(harmed)}")
            else:
                problems += differences(harmed, straight) + leftovers(harmed.out)
    return {
        "stages": {stage: dict(counts) for stage, counts in outcomes.items()},
        "problems": problems,
        "seconds": round(time.monotonic() - began, 1),
        "kept": not problems,
    }


def starve_one(harmed: Harmed, stage: str, room: int) -> str:
    """Let the run come to the stage and take the memory away there; how it ended."""
    child = start(harmed)
    if Watch(harmed).until(child, stage):
        time.sleep(SECONDS_IN)
        starve(child, room)
    child.join(LONGEST)
    if child.is_alive():
        child.kill()
        child.join()
        return SILENT
    if child.exitcode == 0:
        return SURVIVED
    if child.exitcode == 2 and "out of memory" in str(report_of(harmed).get("error")):
        return EXPLAINED
    return DIAGNOSED if "memory" in diagnose(child.exitcode, said(harmed).splitlines()) else SILENT


def starve(child: BaseProcess, room: int) -> None:
    """From now on the process may have that much more than it has."""
    held = psutil.Process(child.pid).memory_info().vms
    resource.prlimit(child.pid, resource.RLIMIT_AS, (held + room, held + room))
