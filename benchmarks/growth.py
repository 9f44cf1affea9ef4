"""How time and memory grow: python -m benchmarks.growth [--only tokens,batch] [--steps N] [--plot F.svg] [--json]

A training step of pico in float32 over the number of image tokens, the batch, the rank of the adapter, the datasets and the
samples; all else stays. Each row is a process of its own, forked from one that has the libraries: the median seconds of a step,
and the anonymous memory at its peak beyond what the process began with. `exponent` is the slope in the logarithms over the
upper half of the range, where what is fixed weighs least: 1 is linear, 0 constant. Attention makes time over tokens bend
upwards from 1; datasets and samples are to stay at 0.

`rates` are those of one small run in a process of its own: the seconds from the start of the process to the end of the first
step (20 pictures at 256 px, nothing in the caches), pictures encoded a second, sampler steps a second, seconds of a checkpoint.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from trainer_core.host_memory import give_back_at_once
from trainer_core.saving import save_state
from trainer_core.train import make_pictures

from .encoding import make_photos
from .memory import anonymous_bytes, watched
from .step import Bench, Case, machine, make_job

ROOT = Path(__file__).resolve().parents[1]
SMALL = Case(pixels=128, batch=1)
WARM_UP = 2
BAR_FIRST_STEP = 11.0  # seconds
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#b279a2")
EDGE, MARGIN = 360, 60  # of a panel of the plot


class Axis(NamedTuple):
    """What grows, and the case of each of its values."""

    name: str
    values: Sequence[int]
    case: Callable[[int], Case]


AXES = (
    Axis("tokens", (64, 256, 576, 1024), lambda tokens: replace(SMALL, pixels=16 * math.isqrt(tokens))),
    Axis("batch", (1, 2, 4, 8, 16), lambda batch: replace(SMALL, batch=batch, pictures=16)),  # a bucket fills its batch
    Axis("rank", (4, 16, 64, 128), lambda rank: replace(SMALL, rank=rank)),
    Axis("datasets", (1, 4, 16, 64), lambda count: replace(SMALL, pictures=64, datasets=count)),
    Axis("samples", (4, 16, 64, 256), lambda count: replace(SMALL, pictures=count)),
)


def measure(axis: Axis, steps: int) -> dict[str, Any]:
    """Rows of value, seconds and bytes, and how both grow."""
    processes = get_context("forkserver")
    processes.set_forkserver_preload(["benchmarks.step"])
    with ProcessPoolExecutor(1, processes, max_tasks_per_child=1) as pool:
        rows = [(value, *pool.submit(measure_one, axis.case(value), steps).result()) for value in axis.values]
    half = rows[len(rows) // 2 - 1 :]
    return {
        "rows": [{"value": value, "seconds": round(seconds, 5), "bytes": size} for value, seconds, size in rows],
        "exponent_of_seconds": slope([(value, seconds) for value, seconds, _ in half]),
        "exponent_of_bytes": slope([(value, size) for value, _, size in half]),
    }


def measure_one(case: Case, steps: int) -> tuple[float, int]:
    """The median seconds of a step, and the bytes at the peak beyond what this process holds now."""
    give_back_at_once()
    before = anonymous_bytes()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(case, Path(folder))
        bench.ours(WARM_UP)
        with watched() as seen:
            times = bench.ours(steps)
    return statistics.median(times), seen["peak_anonymous_bytes"] - before


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares in the logarithms."""
    xs, ys = ([math.log(max(1e-9, point[index])) for point in points] for index in (0, 1))
    return round(statistics.linear_regression(xs, ys).slope, 3)


def rates() -> dict[str, float]:
    """One small run from its beginning, then a picture and a checkpoint of another in this process."""
    with tempfile.TemporaryDirectory() as folder:
        report = first_step(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Case(prompts=1), Path(folder))
        began = time.perf_counter()
        make_pictures(bench.setup, bench.trainee, bench.caches, bench.context, step=0)
        report["sampler_steps_per_second"] = round(bench.setup.sampler.num_steps / (time.perf_counter() - began), 2)
        bench.ours(1)
        began = time.perf_counter()
        save_state(bench.setup, bench.trainee, bench.context)
        report["seconds_of_a_checkpoint"] = round(time.perf_counter() - began, 3)
    return report


def first_step(folder: Path) -> dict[str, float]:
    """`flux-lora run` on 20 pictures at 256 px, from the start of the process."""
    pictures = make_photos(folder / "pictures", 20, 256)
    job = make_job(Case(), folder).model_dump(mode="json")
    job["datasets"] = [{"instance_data_dir": str(pictures), "resolution": 256, "caption_strategy": "filename"}]
    job["training"] |= {"max_train_steps": 2, "train_batch_size": 1}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-m", "trainer_core", "run", str(folder / "job.json")]
    began = time.time()
    places = ["--out", str(folder / "runs"), "--cache", str(folder / "cache")]
    subprocess.run([*command, *places, "--json"], cwd=ROOT, check=True, capture_output=True)
    [path] = (folder / "runs").glob("*/events.jsonl")
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    steps = [event["time"] for event in events if event["event"] == "step"]
    encoding = [event for event in events if event["event"] == "phase" and event["phase"] == "encode pictures"]
    return {"seconds_to_first_step": round(steps[0] - began, 2), "encoded_per_second": encoding[-1]["per_second"]}


def draw(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Two panels, seconds and bytes, each relative to the smallest value, both axes in logarithms."""
    panels = [
        panel(found, key, f"{title}, times that of the smallest", number * (EDGE + 2 * MARGIN))
        for number, (key, title) in enumerate((("seconds", "seconds of a step"), ("bytes", "memory at the peak")))
    ]
    size = f'width="{2 * (EDGE + 2 * MARGIN)}" height="{EDGE + 2 * MARGIN}"'
    style = 'font-family="sans-serif" font-size="12"'
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}><rect width="100%" height="100%" fill="white"/>'
        + "".join(panels)
        + "</svg>\n",
        encoding="utf-8",
    )


def panel(found: dict[str, dict[str, Any]], key: str, title: str, left: int) -> str:
    """One of the two; the dashed line is growth in proportion."""
    curves = {
        name: [(row["value"] / part["rows"][0]["value"], row[key] / part["rows"][0][key]) for row in part["rows"]]
        for name, part in found.items()
    }
    most = max(value for points in curves.values() for point in points for value in point)

    def place(x: float, y: float) -> str:
        across, up = (math.log(min(most, max(0.5, value)) / 0.5) / math.log(most / 0.5) for value in (x, y))
        return f"{left + MARGIN + across * EDGE:.1f},{MARGIN + (1 - up) * EDGE:.1f}"

    parts = [
        f'<text x="{left + MARGIN}" y="{MARGIN - 24}">{title}</text>',
        f'<rect x="{left + MARGIN}" y="{MARGIN}" width="{EDGE}" height="{EDGE}" fill="none" stroke="#bbb"/>',
        f'<polyline points="{place(1, 1)} {place(most, most)}" stroke="#bbb" stroke-dasharray="4" fill="none"/>',
    ]
    for number, (name, points) in enumerate(curves.items()):
        colour, line = COLOURS[number], " ".join(place(*point) for point in points)
        legend = f'x="{left + MARGIN + 10}" y="{MARGIN + 20 + 16 * number}" fill="{colour}"'
        parts.append(f'<polyline points="{line}" stroke="{colour}" stroke-width="2" fill="none"/>')
        parts.append(f"<text {legend}>{name}, exponent {found[name][f'exponent_of_{key}']:.2f}</text>")
    for mark in (1, 4, 16, 64):
        if mark <= most:
            x, y = place(mark, 0.5).split(",")
            parts.append(f'<text x="{x}" y="{float(y) + 16}" text-anchor="middle">{mark}</text>')
            parts.append(f'<text x="{left + MARGIN - 6}" y="{place(1, mark).split(",")[1]}" text-anchor="end">{mark}</text>')
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [axis.name for axis in AXES]
    parser.add_argument("--only", default=",".join([*names, "rates"]), help="some of " + ", ".join([*names, "rates"]))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    found = {axis.name: measure(axis, arguments.steps) for axis in AXES if axis.name in wanted}
    report: dict[str, Any] = {"machine": machine(), **found}
    if "rates" in wanted:
        report["rates"] = rates()
    if arguments.plot:
        draw(arguments.plot, found)
    print(json.dumps(report) if arguments.json else "\n".join(f"{name}: {value}" for name, value in report.items()))


if __name__ == "__main__":
    main()
