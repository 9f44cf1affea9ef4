"""How fast a large dataset is found, and how much memory it takes: python -m benchmarks.data --files 100000 --json

Writes that many small pictures (PNG and JPEG of many sizes, with captions, in nested folders) into a temporary folder, or into
`--folder`, where they stay and are used again. Each measurement runs in a child process of its own:

    first_index_seconds   the index with nothing remembered; first_index_peak_bytes is the largest resident size on the way
    second_index_seconds  the same once more, nothing changed
    bytes_per_sample      what the samples hold, by tracemalloc; slope_bytes_per_sample between half and all of the files
    plan_seconds          the batches of one epoch, batch size 4
    digest_seconds        the identity of the data, as a run and ComfyUI ask for it

Bars at 100,000 files: 60 s and 600 MB, 5 s, 1500 bytes, 2 s. Seconds of the processor stand beside those of the clock, as other
work on the machine spoils the latter.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from trainer_core.data.index import index_datasets
from trainer_core.data.sample import Sample
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.run_dir import dataset_digest
from trainer_core.specs.dataset import DatasetSpec

FILES_IN_FOLDER = 500
WORDS = (
    "a",
    "small",
    "red",
    "old",
    "round",
    "ball",
    "box",
    "hill",
    "tree",
    "lake",
    "under",
    "beside",
    "the",
    "sky",
    "in",
    "ink",
)


def make_files(folder: Path, count: int) -> Path:
    """So many pictures with captions, all different, a few hundred bytes to a few thousand each."""
    random_ = random.Random(0)
    for number in range(count):
        place = folder / f"part {number // FILES_IN_FOLDER // 20}" / f"set {number // FILES_IN_FOLDER % 20}"
        if number % FILES_IN_FOLDER == 0:
            place.mkdir(parents=True, exist_ok=True)
        size = random_.randrange(40, 160), random_.randrange(40, 160)
        image = Image.frombytes("RGB", (4, 4), random_.randbytes(48)).resize(size, Image.Resampling.BICUBIC)
        path = place / f"picture_{number:06d}.{'jpg' if number % 2 else 'png'}"
        image.save(path, **({} if number % 2 else {"compress_level": 1}))
        path.with_suffix(".txt").write_text(" ".join(random_.choices(WORDS, k=12)), encoding="utf-8")
    return folder


def samples_of(folder: Path, cache: Path, most: int = 0) -> tuple[Sample, ...]:
    """The index of the folder, or of so many pictures in it."""
    spec = DatasetSpec(instance_data_dir=str(folder), max_num_samples=most)
    return index_datasets((spec,), FLAVOURS["dev"], cache).samples


def measure_index(folder: Path, cache: Path) -> dict[str, Any]:
    told = timed(lambda: samples_of(folder, cache))
    return told | {"samples": len(told.pop("outcome")), "peak_bytes": peak_bytes()}


def measure_bytes(folder: Path, cache: Path) -> dict[str, Any]:
    """By a second index, whose first has filled what fills only once."""
    samples_of(folder, cache, 100)
    held = []
    for share in (2, 1):
        count = len(samples_of(folder, cache)) // share
        tracemalloc.start()
        samples = samples_of(folder, cache, count)
        held.append((len(samples), tracemalloc.get_traced_memory()[0]))
        tracemalloc.stop()
        del samples
    (half, half_bytes), (count, all_bytes) = held
    return {"bytes": all_bytes / count, "slope": (all_bytes - half_bytes) / (count - half)}


def measure_plan(folder: Path, cache: Path) -> dict[str, Any]:
    samples = samples_of(folder, cache)
    epoch_of(samples[:1])  # imports torch
    told = timed(lambda: epoch_of(samples))
    return told | {"batches": len(told.pop("outcome"))}


def epoch_of(samples: tuple[Sample, ...]) -> list[tuple[int, ...]]:
    """The batches of the first epoch: the one place that knows how they are asked for."""
    from trainer_core.data.batches import BatchPlan
    from trainer_core.data.encode import Caches

    return BatchPlan(samples, Caches({}, {}, {}), batch_size=4, caption_dropout=0.1, seed=0).indices_of_epoch(0)


def measure_digest(folder: Path, cache: Path) -> dict[str, Any]:
    told = timed(lambda: dataset_digest(folder))
    return told | {"digest": told.pop("outcome")}


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    """The outcome, the seconds of the clock, and those of the processor in all threads."""
    clock, processor = time.perf_counter(), time.process_time()
    outcome = work()
    return {
        "outcome": outcome,
        "seconds": time.perf_counter() - clock,
        "processor_seconds": time.process_time() - processor,
    }


def peak_bytes() -> int:
    """The largest resident size of this process so far; Linux tells it in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


MEASURES = {"index": measure_index, "bytes": measure_bytes, "plan": measure_plan, "digest": measure_digest}


def in_child(measure: str, folder: Path, cache: Path) -> dict[str, Any]:
    """What that measure says in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.data", "--measure", measure, "--folder", str(folder), "--cache", str(cache)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure_all(folder: Path, cache: Path) -> dict[str, Any]:
    first, second = in_child("index", folder, cache), in_child("index", folder, cache)
    held, plan, digest = (in_child(name, folder, cache) for name in ("bytes", "plan", "digest"))
    return {
        "files": second["samples"],
        "first_index_seconds": first["seconds"],
        "first_index_processor_seconds": first["processor_seconds"],
        "first_index_peak_bytes": first["peak_bytes"],
        "second_index_seconds": second["seconds"],
        "second_index_processor_seconds": second["processor_seconds"],
        "second_index_peak_bytes": second["peak_bytes"],
        "bytes_per_sample": held["bytes"],
        "slope_bytes_per_sample": held["slope"],
        "plan_seconds": plan["seconds"],
        "plan_processor_seconds": plan["processor_seconds"],
        "batches": plan["batches"],
        "digest_seconds": digest["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the pictures are, or will be; else in a temporary folder")
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(MEASURES[arguments.measure](arguments.folder, arguments.cache)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "pictures"
        if not folder.exists():
            make_files(folder, arguments.files)
        report = measure_all(folder, Path(temporary) / "cache")
    print(json.dumps(report) if arguments.json else "\n".join(f"{name}: {value}" for name, value in report.items()))


if __name__ == "__main__":
    main()
