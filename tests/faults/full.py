"""Disks that fill up: anywhere, and at each place that matters, by as many bytes as it takes to be refused there.

The trainer is halted (SIGSTOP) when it tells what comes before the place, ballast takes the disk but for a part of what is
written next, and it goes on. Where it was refused then is read from the file that its message names.
"""

import os
import random
import re
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from trainer_core.checkpoint import undamaged_state
from trainer_core.events import Event, EventReader
from trainer_core.saved import list_checkpoints

from .disks import small_disk
from .harmed import Harmed, differences, finish, leftovers, report_of, said, start
from .stages import LOOK_SECONDS

PAGE = 4096  # what tmpfs gives at a time
FILLED_BY = 3  # the checkpoint of the step after this one; 3 and 4 make no picture
PICTURES, CAPTIONS, MASKS = KINDS = ("latents", "captions", "masks")
ANYWHERE, CHECKPOINT, FINAL = "anywhere", "checkpoint", "final LoRA"
NOWHERE = "nowhere"


class Place(NamedTuple):
    """Where a disk is to fill up: once the run has told `since`, with between `least` and `most` bytes of room."""

    name: str
    since: Callable[[Event], bool] | None  # None: before the run begins
    least: int
    most: int


def fill_disks(straight: Harmed, trials: int, seed: int) -> dict[str, Any]:
    """So many runs on disks that fill up, one place after the other, and then have room; what came of them."""
    dice, problems, began = random.Random(seed), [], time.monotonic()
    places, found = places_of(straight), defaultdict(Counter)
    for number in range(trials):
        place = places[number % len(places)]
        where, problem = fill_one(straight, f"full-{number}", place, dice.random())
        found[place.name][where] += 1
        problems += [f"{place.name}, {where}: {problem}"] * bool(problem)
    missed = [place.name for place in places[:trials] if place.name != ANYWHERE and not found[place.name][place.name]]
    return {
        "disks": trials,
        "resumed": trials - len(problems),
        "full_in": {name: dict(counts) for name, counts in found.items()},  # wanted: where it was
        "missed": missed,
        "problems": problems,
        "seconds": round(time.monotonic() - began, 1),
        "kept": not problems and not missed,
    }


def places_of(straight: Harmed) -> list[Place]:
    """The places, by the sizes of what the undisturbed run has left."""
    run, steps = straight.run_dir, straight.steps
    pictures, captions, masks = (pages(straight.out / "cache" / kind) for kind in KINDS)
    checkpoint = pages(list_checkpoints(run.checkpoints_dir)[0])
    last = sum(pages(folder) for folder in run.root.glob(f"*/step-{steps:06d}*"))  # pictures of the last step
    loras = sum(map(pages, run.root.glob("*.safetensors")))

    def begins(phase: str) -> Callable[[Event], bool]:
        return lambda event: event["event"] == "phase" and event["phase"] == phase

    return [
        Place(ANYWHERE, None, 0, pages(straight.out)),
        Place(PICTURES, begins("encode pictures"), PAGE, pictures),
        Place(CAPTIONS, begins("encode captions"), PAGE, captions),
        Place(MASKS, begins("encode captions"), captions, captions + masks),
        Place(CHECKPOINT, lambda event: (event["event"], event.get("step")) == ("step", FILLED_BY), PAGE, checkpoint),
        Place(
            FINAL,
            lambda event: (event["event"], event.get("step")) == ("checkpoint", steps),
            last + 4 * PAGE,
            last + loras,
        ),
    ]


def fill_one(straight: Harmed, name: str, place: Place, share: float) -> tuple[str, str]:
    """A run on a disk that fills up there, the room by that share between least and most; where it was refused, and what was
    wrong with that, or with going on."""
    harmed = straight.beside(name)
    with small_disk(harmed):
        room = int(place.least + share * (place.most - place.least)) // PAGE * PAGE
        code, message = run_on_full(harmed, place.since, room)
        if code == 0:
            return NOWHERE, "; ".join(differences(harmed, straight))
        where = refused_at(message, harmed)
        if code != 2 or not any(word in message for word in ("is full", "No space left")):
            return where, f"exit code {code}: {said(harmed)}"
        kept = list_checkpoints(harmed.run_dir.checkpoints_dir)
        if any(undamaged_state(folder) is None for folder in kept):
            return where, "a checkpoint is not whole"
        ballast_of(harmed).unlink()
        if finish(harmed) != 0:
            return where, said(harmed)
        return where, "; ".join(differences(harmed, straight) + leftovers(harmed.out))


def run_on_full(harmed: Harmed, since: Callable[[Event], bool] | None, room: int) -> tuple[int, str]:
    """A start whose disk fills up then; its exit code, and the message of its error."""
    if since is None:
        leave(harmed, room)
    child, reader = start(harmed), EventReader(harmed.run_dir.events_path)
    while since is not None and child.is_alive():
        if any(map(since, reader.new())):
            os.kill(child.pid, signal.SIGSTOP)
            leave(harmed, room)
            os.kill(child.pid, signal.SIGCONT)
            break
        time.sleep(LOOK_SECONDS)
    child.join()
    return child.exitcode, str(report_of(harmed).get("error"))


def leave(harmed: Harmed, room: int) -> None:
    """Take the disk but for so many bytes."""
    disk = os.statvfs(harmed.out)
    with ballast_of(harmed).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - room)


def ballast_of(harmed: Harmed) -> Path:
    return harmed.out / "ballast"


def refused_at(message: str, harmed: Harmed) -> str:
    """The place of the file that the message names, or that file."""
    found = re.search(rf"{re.escape(str(harmed.out))}/([^\s:()']+)", message)
    named = found[1] if found else message
    parts = Path(named).parts
    if parts[:1] == ("cache",):
        return next((kind for kind in KINDS if kind in parts), named)
    if any(part.endswith(".partial") for part in parts):
        return CHECKPOINT
    return FINAL if len(parts) == 2 and named.endswith(".safetensors") else parts[1] if len(parts) > 1 else named


def pages(path: Path) -> int:
    """The bytes that it takes on such a disk, a folder with all below it."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(-(-file.stat().st_size // PAGE) * PAGE for file in files)
