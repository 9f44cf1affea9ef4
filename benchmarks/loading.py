"""How long the training waits for its batches: python -m benchmarks.loading [--steps N] [--batch N] [--json]

The demo's job on pico, batch 8, as `train.train` runs it, with the caches warm. `wait_share` is what the run's own metrics say
(`data_wait_share`): the time in which the loop stood still for a batch, as a share of all its time. `read_share` is what it
would be if each batch was read when it is wanted: the seconds of reading the same batches one after another, measured
afterwards in the same process, over the same steps' time. Bar: a wait share under 1 %.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from trainer_core.caching import fill_caches
from trainer_core.context import RunContext
from trainer_core.course import mix_of
from trainer_core.data.batches import BatchPlan
from trainer_core.events import Event, EventLog
from trainer_core.run_dir import RunDir
from trainer_core.train import open_run, train
from trainer_core.trainee import build_trainee

from .step import Case, make_setup

BAR = 0.01
WARM_UP_STEPS = 5


def measure(steps: int, batch_size: int, folder: Path) -> dict[str, object]:
    """The share of waiting, that of reading without a thread, and the seconds of a step."""
    seen: list[Event] = []
    setup = make_setup(Case(), folder)
    training = setup.job.training.model_copy(update={"train_batch_size": batch_size, "log_interval": 10_000})
    setup = replace(setup, job=setup.job.model_copy(update={"training": training}))
    run_dir = RunDir(folder / "run")
    run_dir.root.mkdir()
    context = RunContext(run_dir, folder / "cache", EventLog(run_dir.events_path, seen.append), lambda: False)
    open_run(setup, context)
    caches = fill_caches(setup, context)
    trainee = build_trainee(setup, context)
    plan = BatchPlan(
        setup.samples, caches, batch_size=batch_size, caption_dropout=0.0, seed=training.seed, mix=mix_of(setup.job)
    )
    for number in range(WARM_UP_STEPS):
        plan.batch(number)
    train(replace(setup, num_steps=WARM_UP_STEPS), trainee, caches, context)
    train(replace(setup, num_steps=WARM_UP_STEPS + steps), trainee, caches, context)
    metrics = [event for event in seen if event["event"] == "metrics"][-1]
    began = time.perf_counter()
    for number in range(WARM_UP_STEPS, WARM_UP_STEPS + steps):
        plan.batch(number)
    reading = (time.perf_counter() - began) / steps
    return {
        "batch_size": batch_size,
        "steps": steps,
        "seconds_per_step": round(1 / metrics["steps_per_second"], 5),
        "read_seconds_per_step": round(reading, 5),
        "read_share": round(reading * metrics["steps_per_second"], 4),
        "wait_share": metrics["data_wait_share"],
        "bar": BAR,
        "met": metrics["data_wait_share"] < BAR,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(arguments.steps, arguments.batch, Path(folder))
    if arguments.json:
        print(json.dumps(report))
    else:
        print("\n".join(f"{name}: {value}" for name, value in report.items()))


if __name__ == "__main__":
    main()
