"""`flux-lora evaluate`: the held-out loss of a run's checkpoints, measured once more from their files.

The figure depends on the LoRA alone: the pictures, the noise and the noise levels are always the same. So it can be asked for
again, later or elsewhere, and compared.
"""

import argparse
from pathlib import Path
from typing import Any

from .errors import JobError
from .run_dir import RunDir

Report = dict[str, Any]

TEXT = "measure the held-out loss of a run's checkpoints, by noise level"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--checkpoints", default="", help="final, best, ema, or steps, with commas (default: all kept)")


def evaluate(args: argparse.Namespace) -> Report:
    """The loss of the base and of each LoRA; JobError where the run has nothing to measure it on."""
    from .compare import Base, LoraOn, chosen_loras, setup_of
    from .measure import encode, label_of, measure_loss, measured, with_pictures

    run_dir = RunDir(args.run_dir.absolute())
    if not run_dir.manifest_path.exists():
        raise JobError(f"{run_dir.root} is not a run folder: it has no manifest.json; give the folder that `run` printed")
    cache_dir = (args.cache or args.out / "cache").absolute()
    loras = chosen_loras(run_dir, args.checkpoints.replace(",", " ").split())
    setup = with_pictures(setup_of(run_dir), cache_dir)
    if not setup.eval_samples:
        raise JobError(
            f"run {run_dir.run_id} has no pictures to measure its loss on; train with eval_steps_interval and num_held_out or "
            "an eval dataset, and keep the pictures where they were"
        )
    caches, base, rows = encode(setup, cache_dir), Base(setup), []
    for lora in (None, *loras):
        with LoraOn(base.transformer, setup, lora, 1.0), base.judging():
            by_dataset = measure_loss(setup, base.transformer, caches)
        rows.append({"label": label_of(lora, 1.0), "loss": measured(by_dataset), "by_dataset": by_dataset})
    return {"run_dir": str(run_dir.root), "rows": rows}


def show(report: Report) -> None:
    """A line for each LoRA, with the loss at each noise level behind it."""
    for row in report["rows"]:
        levels = "  ".join(f"{sigma}: {loss:.4f}" for losses in row["by_dataset"].values() for sigma, loss in losses.items())
        print(f"{row['label']:<36}  {row['loss']:.6f}   by noise level  {levels}")
