"""Does TREAD pay in loss? python -m benchmarks.equal_time [--steps N] [--pixels P] [--json]

Pico learns the demo's style with 0, 25, 50 and 75 % of the image tokens left out of the layers 1 to -2, all else equal, at a
constant rate. The runs take turns, a few steps each, so that what else the machine does slows all alike. Then each goes on
until it has trained for as long as the one without a route took for `--steps`. What is compared is the loss on pictures that
are never trained on, with all tokens: after equal steps, and after equal time.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from trainer_core.job_file import parse_job
from trainer_core.setup import prepare

from .step import Bench, Case, machine, make_job

RATIOS = (0.0, 0.25, 0.5, 0.75)
HELD_OUT = 4
ROUND = 10  # steps


def make_bench(ratio: float, pixels: int, folder: Path) -> Bench:
    """A run of that ratio on the demo's pictures."""
    case = Case(tread=ratio)
    job = make_job(case, folder).model_dump(mode="json")
    job["datasets"][0]["resolution"] = pixels
    job["optimizer"] |= {"learning_rate": 1e-3, "lr_scheduler": "constant", "lr_warmup_steps": 0}
    job["optimizer"].pop("lr_end")
    job["validation"] |= {"num_held_out": HELD_OUT, "num_eval_images": HELD_OUT, "eval_steps_interval": 1_000_000}
    return Bench(case, folder, prepare(parse_job(job)))


def measure(steps: int, pixels: int, folder: Path) -> dict[str, Any]:
    """For each ratio: seconds a step, and the losses."""
    benches, times = {}, {ratio: [] for ratio in RATIOS}
    for ratio in RATIOS:
        (folder / str(ratio)).mkdir()
        benches[ratio] = make_bench(ratio, pixels, folder / str(ratio))
    while benches[0.0].trainee.history.step < steps:
        for ratio, bench in benches.items():
            times[ratio] += bench.ours(ROUND - 1)
    seconds = {ratio: statistics.median(found) for ratio, found in times.items()}
    rows = []
    for ratio, bench in benches.items():
        history = bench.trainee.history
        start, equal_steps, done = history.evaluations[0].loss, history.evaluations[-1].loss, history.step
        more = round(done * seconds[0.0] / seconds[ratio]) - done
        if more > 1:
            bench.ours(more - 1)
        rows.append(
            {
                "left_out": ratio,
                "seconds_per_step": round(seconds[ratio], 4),
                "faster": round(seconds[0.0] / seconds[ratio], 3),
                "loss_before": round(start, 5),
                "loss_after_equal_steps": round(equal_steps, 5),
                "steps_in_equal_time": history.step,
                "loss_after_equal_time": round(history.evaluations[-1].loss, 5),
            }
        )
    return {"steps": steps, "pixels": pixels, "rows": rows, "machine": machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(arguments.steps, arguments.pixels, Path(folder))
    if arguments.json:
        print(json.dumps(report))
        return
    for row in report["rows"]:
        print("  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
