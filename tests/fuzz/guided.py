"""The same by coverage: atheris keeps the spoilt files that reach lines of the core which none had reached, and spoils them on.

Half of the files are spoilt as ever, half by libFuzzer's own means. The package atheris (Linux, macOS) is no dependency of
anything here: `pip install atheris`.
"""

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from .campaign import Finding, Outcome

LONGEST_FILE = 100_000
HANGS = 3600  # seconds of the clock, halts included, after which libFuzzer ends the process, and keeps the file
OPTIONS = (
    "-verbosity=0",
    f"-max_len={LONGEST_FILE}",
    f"-timeout={HANGS}",
    "-rss_limit_mb=0",
    "-handle_term=0",
    "-handle_int=0",
)


def guided(name: str, seconds: float, seed: int, tell: "Callable[[Outcome], int]") -> NoReturn:
    """Spoil and feed for so many seconds of the processor; `tell` is given what came of it, and gives the exit code. Ends the
    process, as libFuzzer does."""
    import atheris

    made = Path(tempfile.mkdtemp(prefix="guided-"))
    folder, corpus, seeds_from = (made / part for part in ("files", "corpus", "seeds"))
    for part in (folder, corpus, seeds_from):
        part.mkdir()
    with atheris.instrument_imports(include=["trainer_core"]):  # nothing of it is imported before
        from .campaign import Outcome, judge
        from .mutate import spoilt
        from .targets import target_of

        target = target_of(name)
        seeds = target.seeds(seeds_from)
        for number, data in enumerate(seeds):
            (corpus / str(number)).write_bytes(data)
            judge(target, data, folder)  # what is imported on the way is instrumented, too
    stopped: list[int] = []
    for wish in (signal.SIGTERM, signal.SIGINT):
        signal.signal(wish, lambda number, frame: stopped.append(number))
    found: dict[tuple[str, str], Finding] = {}
    files = refused = 0
    begun = time.process_time()

    def one(data: bytes) -> None:
        nonlocal files, refused
        outcome = judge(target, data, folder)
        files, refused = files + 1, refused + (outcome is not None)
        if outcome is not None and not isinstance(outcome, str):
            if (outcome.where, outcome.what[:20]) not in found:
                print(f"found: {outcome.what} at {outcome.where}", flush=True)  # in case the end does not come
            found.setdefault((outcome.where, outcome.what[:20]), outcome)
        if stopped or time.process_time() - begun >= seconds:
            code = tell(Outcome(files, refused, tuple(found.values()), time.process_time() - begun, not stopped))
            shutil.rmtree(made)
            os._exit(code)

    def mutate(data: bytes, longest: int, number: int) -> bytes:
        draw = random.Random(number)
        if draw.random() < 0.5:
            return atheris.Mutate(data, longest)
        return spoilt(data, draw.choice(seeds), draw)[:longest]

    words = ["fuzz", str(corpus), *OPTIONS, f"-seed={seed}", f"-artifact_prefix={tempfile.gettempdir()}/fuzz-{name}-"]
    atheris.Setup(words, one, custom_mutator=mutate)
    atheris.Fuzz()
    raise AssertionError("libFuzzer has returned")
