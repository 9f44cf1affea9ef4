"""A disk that turns bits and loses the ends of files: every file of a run folder and of its cache, one at a time.

What may come of it: the run ends with the bytes of the undisturbed one, because the file did not matter, or the damage was
found and made good; or it is refused with the name of the file. Anything else is a broken promise: other bytes were trained on
in silence, or the trainer fell over.
"""

import random
import shutil
import time
from collections import Counter
from multiprocessing import active_children
from pathlib import Path
from typing import Any

from trainer_core.events import EventReader
from trainer_core.run_dir import RunDir

from .harmed import Harmed, finish, report_of, said, start
from .stages import LOOK_SECONDS

STEPS, STOP_AFTER = 6, 2
EQUAL, NAMED = "equal", "named"  # the outcomes that are promised
SMALL = {"max_train_steps": STEPS, "checkpoint_step_interval": 1, "checkpoints_total_limit": 2}
UNTOUCHED = ("lock", "child.log")


def damage_all(straight: Harmed, places: int, seed: int, part: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    """Each file of the stopped run and of the finished one, in so many places; what came of it.

    `part` (2, 4) takes every fourth file from the second on; the places in a file are the same whatever is taken. What was done
    until an interruption is told, too.
    """
    began, is_whole = time.monotonic(), True
    stopped = make_stopped(straight)
    counts: dict[str, Counter] = {}
    problems: list[str] = []
    first, step = part
    files = [(whole, path) for whole in (stopped, straight) for path in files_of(whole)][first - 1 :: step]
    try:
        for whole, path in files:
            for number in range(places):
                dice = random.Random(f"{seed} {whole.out.name} {path.as_posix()} {number}")
                outcome = damage_one(whole, path, dice, straight, by_folder=number % 2 == 1)
                kind = f"{whole.out.name}/{kind_of(path)}"
                counts.setdefault(kind, Counter())[outcome if outcome in (EQUAL, NAMED) else "broken"] += 1
                problems += [f"{path}: {outcome}"] * (outcome not in (EQUAL, NAMED))
    except KeyboardInterrupt:
        is_whole = False
        for child in active_children():
            child.kill()
    total = sum(counts.values(), Counter())
    return {
        "files": len(files),
        "is_whole": is_whole,
        "places": sum(total.values()),
        **total,
        "by_file": {kind: dict(outcomes) for kind, outcomes in sorted(counts.items())},
        "problems": problems,
        "seconds": round(time.monotonic() - began, 1),
        "kept": is_whole and not problems,
    }


def make_stopped(straight: Harmed) -> Harmed:
    """The same run, stopped and saved before its last step."""
    stopped = straight.beside("stopped")
    while stopped.run_dir.result() is None:
        child = start(stopped)
        reader = EventReader(stopped.run_dir.events_path)
        while child.is_alive() and not any(event.get("step") == STOP_AFTER for event in reader.new()):
            time.sleep(LOOK_SECONDS)
        child.terminate()
        child.join()
        if child.exitcode == 3:
            return stopped
        assert child.exitcode == 0, said(stopped)
        shutil.rmtree(stopped.out)
    raise AssertionError("it came to its end before it could be stopped")


def files_of(harmed: Harmed) -> list[Path]:
    """All that a start may read, below `out`."""
    paths = (path for path in harmed.out.rglob("*") if path.is_file() and path.name not in UNTOUCHED)
    return sorted(path.relative_to(harmed.out) for path in paths)


def damage_one(whole: Harmed, path: Path, dice: random.Random, straight: Harmed, *, by_folder: bool) -> str:
    """Damage that file in a copy of the run, start it, and say what came of it."""
    harmed = whole.beside("harmed")
    shutil.rmtree(harmed.out, ignore_errors=True)
    shutil.copytree(whole.out, harmed.out)
    how = damage(harmed.out / path, dice)
    return outcome_of(harmed, path, finish(harmed, by_folder=by_folder), straight) or f"{how}: {said(harmed)}"


def outcome_of(harmed: Harmed, path: Path, code: int, straight: Harmed) -> str:
    """EQUAL or NAMED; empty where it is neither."""
    if code == 2 and path.name in str(report_of(harmed).get("error")):
        return NAMED
    if code == 0 and all(same(harmed.run_dir, straight.run_dir, name) for name in ("lora", "ema_lora")):
        return EQUAL
    return ""


def same(run: RunDir, other: RunDir, name: str) -> bool:
    mine, theirs = run.result(), other.result()
    return Path(mine[name]).read_bytes() == Path(theirs[name]).read_bytes() and mine["losses"] == theirs["losses"]


def damage(path: Path, dice: random.Random) -> str:
    """Turn a bit of the file, or cut it off; what was done."""
    data = bytearray(path.read_bytes())
    place = dice.randrange(len(data)) if data else 0
    if not data or dice.random() < 0.3:
        path.write_bytes(data[:place])
        return f"cut off at byte {place}"
    bit = dice.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {place} turned"


def kind_of(path: Path) -> str:
    """The file without what tells it from others of its kind."""
    parts = ["RUN" if number == 0 and path.parts[0] != "cache" else part for number, part in enumerate(path.parts)]
    name = "shard" if parts[-1].startswith("shard-") else parts[-1]
    parents = [part for part in parts[:-1] if not part.startswith("step-") and len(part) != 2]
    return "/".join([*parents, "known.png" if parents[-1] == "pictures" else name])
