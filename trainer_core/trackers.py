"""The run in TensorBoard or Weights & Biases: one more listener of the events, so no other part of a run knows of them.

What they get is what the event log has: reports, evaluations, scores, pictures, and the job. Both are called directly; around
the few calls that are made, accelerate's trackers would only add its global state. Weights & Biases writes into the run folder
(`wandb sync` sends that) unless the machine's owner has set WANDB_MODE=online: a job, which may be a stranger's, cannot.
"""

import hashlib
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .errors import JobError
from .events import Event
from .history import NUM_BANDS
from .job import TrainJob
from .job_file import shown_job
from .run_dir import RunDir
from .specs.training import TrainingSpec

PACKAGES = {"none": (), "tensorboard": ("tensorboard",), "wandb": ("wandb",), "all": ("tensorboard", "wandb")}


def check_trackers(spec: TrainingSpec) -> None:
    """JobError when the package of a tracker is not there."""
    missing = [package for package in PACKAGES[spec.report_to] if find_spec(package) is None]
    if missing:
        raise JobError(
            f"training.report_to is {spec.report_to!r}, but {' and '.join(missing)} cannot be found here; get it with: "
            f"pip install {' '.join(missing)}, or set report_to to 'none'"
        )


class Tracker(Protocol):
    """Where numbers and pictures go. `resumed_from` is how many steps were done before, 0 for a new run."""

    def begin(self, job: TrainJob, run_dir: RunDir, resumed_from: int) -> None: ...

    def numbers(self, values: dict[str, float], step: int) -> None: ...

    def picture(self, name: str, path: Path, caption: str, step: int) -> None: ...

    def end(self) -> None: ...


class TensorBoard:
    """Event files in the run folder's `tensorboard`; steps that a resumed run does again replace those from before."""

    def begin(self, job: TrainJob, run_dir: RunDir, resumed_from: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run_dir.root / "tensorboard"
        self._writer = SummaryWriter(str(folder), purge_step=resumed_from + 1 if resumed_from else None)
        shown = json.dumps(shown_job(job), indent=2, ensure_ascii=False)
        self._writer.add_text("job", f"```json\n{shown}\n```", resumed_from)

    def numbers(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, path: Path, caption: str, step: int) -> None:
        self._writer.add_image(f"samples/{name}", np.asarray(_opened(path)), step, dataformats="HWC")

    def end(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of W&B under the run's own id, in the run folder's `wandb`."""

    def begin(self, job: TrainJob, run_dir: RunDir, resumed_from: int) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=job.training.tracker_project_name,
            name=run_dir.run_id,
            id=hashlib.sha256(run_dir.run_id.encode()).hexdigest()[:12],
            dir=str(run_dir.root),
            config=shown_job(job),
            mode="online" if os.environ.get("WANDB_MODE") == "online" else "offline",
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )

    def numbers(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def picture(self, name: str, path: Path, caption: str, step: int) -> None:
        self._run.log({f"samples/{name}": self._wandb.Image(_opened(path), caption=caption)}, step=step)

    def end(self) -> None:
        self._run.finish()


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


class Reporter:
    """A listener for EventLog that passes on what the job's trackers take, once the run has begun."""

    def __init__(self, job: TrainJob, run_dir: RunDir):
        self._job, self._run_dir = job, run_dir
        self._trackers: list[Tracker] = []

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "started" and not self._trackers:
            self._trackers = [TRACKERS[name]() for name in PACKAGES[self._job.training.report_to]]
            for tracker in self._trackers:
                tracker.begin(self._job, self._run_dir, event["resumed_from"])
        for tracker in self._trackers:
            if values := numbers_of(event):
                tracker.numbers(values, event["step"])
            elif kind == "sample":
                path = Path(event["path"])
                tracker.picture(shown_name(path.parent.name, path.stem), path, event["prompt"], event["step"])

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.end()


def numbers_of(event: Event) -> dict[str, float]:
    """The curves' points in an event, by name; none in most."""
    kind = event["event"]
    if kind == "metrics":
        return _metrics(event)
    if kind == "evaluation":
        by_dataset: dict[str, dict[str, float]] = event["by_dataset"]
        points = {f"held_out/{name}/{sigma}": loss for name, losses in by_dataset.items() for sigma, loss in losses.items()}
        return {"held_out/loss": event["loss"], **points}
    if kind == "score":
        name = shown_name(*event["picture"].split("/"))
        return {f"clip_score/{name}": event["clip_score"], f"likeness/{name}": event["likeness"]}
    return {}


def _metrics(event: Event) -> dict[str, float]:
    bands: list[float | None] = event["loss_by_sigma"]
    points = {f"train/{name}": event[name] for name in ("loss", "grad_norm", "learning_rate")}
    points |= {f"speed/{name}": event[name] for name in ("steps_per_second", "data_wait_share")}
    points |= {f"memory/{name}_gib": held for name, held in event["memory_gib"].items()}
    edges = [(band / NUM_BANDS, (band + 1) / NUM_BANDS) for band in range(NUM_BANDS)]
    named: dict[str, Any] = {f"sigma/{a:g}-{b:g}": loss for (a, b), loss in zip(edges, bands, strict=True)}
    return points | {name: loss for name, loss in named.items() if loss is not None}


def shown_name(folder: str, name: str) -> str:
    """The picture's name, the same at every step; those by the running average apart."""
    return f"{name} (average)" if folder.endswith("-ema") else name


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as file:
        return file.convert("RGB")
