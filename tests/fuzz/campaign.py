"""Spoilt files for a while, and what is no clean outcome of one: the findings.

The while is of the processor: what this process has computed, whatever else the machine does. It can be broken off (Ctrl-C, or
SIGTERM by `__main__.py`), and what was done until then is told.

Clean is a result, or an error of ours in words: a JobError, or a ValueError that a line of the core raises by itself. A
finding is any other exception, a reader that takes longer than SLOW seconds, and a message as long as a file.
"""

import random
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from trainer_core.data.sample import Reject
from trainer_core.errors import JobError

from .mutate import spoilt
from .target import ROOT, Target

SLOW = 10.0  # seconds of this thread's own time
LONGEST_MESSAGE = 20_000
CORE = str(ROOT / "trainer_core")


class Finding(NamedTuple):
    what: str
    where: str
    data: bytes


class Outcome(NamedTuple):
    files: int
    refused: int
    findings: tuple[Finding, ...]  # one of each kind
    seconds: float  # of the processor
    is_whole: bool  # not broken off


def campaign(target: Target, seconds: float, seed: int, most: int | None = None) -> Outcome:
    """Spoil and feed for so many seconds of the processor, or so many files."""
    draw, found, is_whole = random.Random(seed), {}, False
    files = refused = 0
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as folder:
        seeds = target.seeds(Path(made))
        begun, since, data = time.process_time(), time.thread_time(), b""
        try:
            for good in seeds:
                outcome = judge(target, data := good, Path(folder))
                if isinstance(outcome, Finding):
                    found[outcome.where, outcome.what[:20]] = outcome
            while time.process_time() - begun < seconds and (most is None or files < most):
                since, data = time.thread_time(), spoilt(draw.choice(seeds), draw.choice(seeds), draw)
                outcome = judge(target, data, Path(folder))
                files, refused = files + 1, refused + (outcome is not None)
                if isinstance(outcome, Finding):
                    found.setdefault((outcome.where, outcome.what[:20]), outcome)
            is_whole = True
        except KeyboardInterrupt:
            if (took := time.thread_time() - since) > SLOW:
                found["", "broken off"] = Finding(f"broken off in it after {took:.1f} s", "", data)
    return Outcome(files, refused, tuple(found.values()), time.process_time() - begun, is_whole)


def judge(target: Target, data: bytes, folder: Path) -> Finding | str | None:
    """None where the file was read, the words of a clean refusal, or a finding."""
    begun = time.thread_time()
    try:
        target.feed(data, folder)
        words = None
    except (JobError, Reject) as error:
        words = str(error)
        if len(words) > LONGEST_MESSAGE or not words.strip():
            return Finding(f"a message of {len(words)} characters: {words[:200]}", "", data)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if not (type(error) is ValueError and last.filename.startswith(CORE)):
            ours = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(ROOT))]
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
            return Finding(f"{type(error).__name__}: {str(error)[:200]}", where, data)
        words = str(error)
    if (took := time.thread_time() - begun) > SLOW:
        return Finding(f"took {took:.1f} s", "", data)
    return words
