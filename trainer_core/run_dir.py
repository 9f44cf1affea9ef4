"""The run folder: where one run keeps everything, and how others talk to it.

The folder's name is the job's name, a digest of what is trained on what, and how long, so the same job always meets the same
folder: found finished it is returned, found unfinished it is continued. The digest covers the job (without its length, its
header metadata and what only shows it) and the names, sizes and modification times of the dataset's files. Runs that differ by
their length alone are siblings: a longer one goes on from a shorter one (`siblings.py`).

    job.json            the job, every default spelt out, written before anything else
    manifest.json       what was really used: versions, device, buckets, module counts, verification
    events.jsonl        the events (events.py)
    control*.json       commands for the running process, taken away once read: {"command": "stop"}; see commands.py
    checkpoints/step-N/ adapter, optimiser and loop state, and the LoRA as it was then (checkpoint.py)
    samples/            pictures: step-N/NAME.png; step-N-ema/ by the running average; step 0 is the base
    compared/           the same, each beside the base's picture
    previews/           what the newest pictures looked like while they were made
    NAME.safetensors    the LoRA, written last but for result.json; NAME-ema.safetensors, its running average
    origin.json         where it began, if in a sibling
    result.json         present if and only if the run is finished; its paths are relative to the folder
    lock                held by the process that trains

Writes are atomic: temporary file, fsync, rename. `docs/run_folder.md` describes the format for others.
"""

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .commands import Command, make_command, read_command
from .data.find import find_files
from .errors import JobError
from .job import TrainJob
from .job_file import load_job

RUN_FOLDER_VERSION = 1  # of what docs/run_folder.md promises; another one where a file goes or changes its meaning
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jxl"})
RESULT_PATHS = ("lora", "ema_lora", "best_lora", "before_after", "loss_curve")
DIGESTED_SUFFIXES = PICTURE_SUFFIXES | {".txt", ".caption", ".csv", ".jsonl", ".parquet"}
LENGTH_FIELDS = {"max_train_steps", "num_train_epochs"}  # of TrainingSpec
OUTSIDE_THE_DIGEST = {  # of a job: its length, and what only shows it
    "metadata": True,
    "base": {"preview_decoder_path"},
    "training": LENGTH_FIELDS | {"report_to", "tracker_project_name", "num_devices"},
}
READ_BY_DATASETS = (
    "instance_data_dir",
    "mask_data_dir",
    "reference_data_dir",
    "wildcards_dir",
    "caption_table",
)  # of DatasetSpec
LOCK = "lock"
LOOK_SECONDS = 1.0  # longer than others hold the lock who only look whether it is held

log = logging.getLogger(__name__)


class RunIsBusy(JobError):
    """Another process trains in this folder."""


@dataclass(frozen=True)
class RunDir:
    """Names of everything in a run folder; touches the disk only where it says so."""

    root: Path

    @property
    def job_path(self) -> Path:
        return self.root / "job.json"

    @property
    def manifest_path(self) -> Path:
        return self.root / "manifest.json"

    @property
    def events_path(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def origin_path(self) -> Path:
        return self.root / "origin.json"

    @property
    def result_path(self) -> Path:
        return self.root / "result.json"

    @property
    def log_path(self) -> Path:
        return self.root / "child.log"

    @property
    def checkpoints_dir(self) -> Path:
        return self.root / "checkpoints"

    @property
    def run_id(self) -> str:
        return self.root.name

    @property
    def before_after_path(self) -> Path:
        return self.root / "before_after.png"

    @property
    def loss_curve_path(self) -> Path:
        return self.root / "loss_curve.png"

    def sample_path(self, step: int, name: str, *, ema: bool = False) -> Path:
        return self.root / "samples" / f"step-{step:06d}{'-ema' if ema else ''}" / f"{name}.png"

    def compared_path(self, step: int, name: str, *, ema: bool = False) -> Path:
        """The same picture with that of the base beside it."""
        return self.root / "compared" / f"step-{step:06d}{'-ema' if ema else ''}" / f"{name}.png"

    @property
    def previews_dir(self) -> Path:
        return self.root / "previews"

    def lora_path(self, name: str) -> Path:
        return self.root / f"{name}.safetensors"

    def result(self) -> dict[str, Any] | None:
        """What the finished run left, its paths made absolute, or None while it is unfinished. Reads the disk."""
        if not self.result_path.exists():
            return None
        result = read_json(self.result_path)
        for name in RESULT_PATHS:
            result[name] = result.get(name) and str(self.root / result[name])
        result["samples"] = [str(self.root / path) for path in result["samples"]]
        return {"run_id": self.run_id, "run_dir": str(self.root), **result}

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write the result, with its paths relative, so that the folder may be moved; returns `result()`. Writes the disk."""
        stored = dict(result)
        for name in RESULT_PATHS:
            stored[name] = result[name] and result[name].relative_to(self.root).as_posix()
        stored["samples"] = [path.relative_to(self.root).as_posix() for path in result["samples"]]
        write_json(self.result_path, stored)
        finished = self.result()
        assert finished is not None
        return finished

    def is_running(self) -> bool:
        """Whether a process trains here now. Touches the disk: to look is to hold the lock for an instant."""
        if not (self.root / LOCK).exists():
            return False
        lock = FileLock(self.root / LOCK, timeout=0)
        try:
            with lock:
                return False
        except Timeout:
            return True

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold this folder while in here; RunIsBusy when another process holds it. A dead process holds nothing."""
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / LOCK, timeout=LOOK_SECONDS)
        try:
            lock.acquire()
        except Timeout:
            raise RunIsBusy(f"{self.root} is being trained by another process; wait for it, or stop it first") from None
        try:
            yield
        finally:
            lock.release()

    def job(self) -> TrainJob:
        """The job of this run; JobError when there is none. Reads the disk."""
        return load_job(self.job_path)

    def clear_unfinished(self) -> None:
        """Remove what a process that died was writing; nobody may write here now, but for commands. Touches the disk."""
        for path in [*self.root.rglob("*.tmp"), *self.root.rglob("*.partial")]:
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.startswith("control"):
                path.unlink()

    def check_job(self, job: TrainJob) -> None:
        """JobError where this folder has gone on with a job that is not this one. Reads the disk."""
        if not self.job_path.exists():
            return
        if _as_trained(self.job()) != _as_trained(job):
            raise JobError(
                f"{self.root} has gone on with another job (`flux-lora resume --job`), so it is not what this job trains; go "
                "on with it by its folder, or give this job another name"
            )

    def ask(self, name: str, prompt: str = "") -> None:
        """Tell the running process, which obeys within a step: one of COMMANDS, with sample a prompt to picture instead of the
        job's own. Several are obeyed in their order. JobError where that is no command. Writes the disk."""
        command = make_command(name, prompt)
        write_json(self.root / f"control-{time.time_ns():020d}-{uuid.uuid4().hex[:6]}.json", command.to_json())

    def take_commands(self) -> list[Command]:
        """The commands that wait, the oldest first, removing them; what is none is passed over with a warning. Touches the
        disk."""
        commands = []
        for path in sorted(self.root.glob("control*.json")):
            taken = path.with_suffix(".taken")
            os.replace(path, taken)
            try:
                commands.append(read_command(read_json(taken)))
            except (ValueError, JobError) as error:
                log.warning("%s held no command: %s", path, error)
            taken.unlink()
        return commands


def _as_trained(job: TrainJob) -> TrainJob:
    """The job without what may differ between two starts of one run: the graph in its header, and who computes it."""
    training = job.training.model_copy(update={"num_devices": 1})
    return job.model_copy(update={"metadata": {}, "training": training})


def run_dir_for(job: TrainJob, out_dir: Path) -> RunDir:
    """The folder that belongs to this job over this data and these LoRAs to start from, below `out_dir`; nothing is created."""
    digest = hashlib.sha256(job.model_dump_json(exclude=OUTSIDE_THE_DIGEST).encode())
    for dataset in job.datasets:
        if not dataset.disabled:
            digest.update(dataset_digest(*(getattr(dataset, field) for field in READ_BY_DATASETS)).encode())
    for file in filter(None, (job.lora.init_lora, job.base.assistant_lora_path)):
        path = Path(file.strip()).expanduser()
        stat = path.stat() if path.is_file() else None
        digest.update(f"{stat.st_size}|{stat.st_mtime_ns}\n".encode() if stat else b"missing")
    training = job.training
    length = str(training.max_train_steps) if training.max_train_steps else f"{training.num_train_epochs}epochs"
    return RunDir(out_dir / f"{job.name}-{digest.hexdigest()[:10]}-{length}")


def dataset_digest(*places: str | Path) -> str:
    """Changes when a picture or text in these folders, or a file given itself, is added, removed, renamed, resized or touched.

    An empty place is none.
    """
    digest = hashlib.sha256()
    for number, place in enumerate(places):
        if not (given := str(place).strip()):
            continue
        path = Path(given).expanduser()
        digest.update(f"{number}|{'folder' if path.is_dir() else 'file' if path.is_file() else 'missing'}\n".encode())
        if path.is_dir():
            lines = (f"{file.name}|{file.stamp[0]}|{file.stamp[1]}\n" for file in find_files(path, DIGESTED_SUFFIXES).files)
            digest.update("".join(lines).encode("utf-8", "surrogatepass"))
        elif path.is_file():
            stat = path.stat()
            digest.update(f"{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def files_below(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Files with one of these suffixes below the folder, sorted by their path; hidden ones are left out."""
    return [file.path for file in find_files(folder, suffixes).files]


def write_atomically(path: Path, data: bytes) -> None:
    """The file appears whole or not at all, also when the power fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
