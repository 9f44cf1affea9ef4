"""The run folder: where one run keeps everything, and how others talk to it.

The folder's name is the job's name and a digest of what is trained on what, so the same job always meets the same folder:
found finished it is returned, found unfinished it is continued. The digest covers the job (without its header metadata)
and the names, sizes and modification times of the dataset's files.

    job.json            the job, every default spelt out, written before anything else
    manifest.json       what was really used: versions, device, buckets, module counts, verification
    events.jsonl        the events (events.py)
    control.json        a command for the running process, deleted once obeyed: {"command": "stop"}
    checkpoints/step-N/ adapter, optimiser and loop state (checkpoint.py)
    samples/            pictures: step-N/INDEX.png
    NAME.safetensors    the LoRA, written last but for result.json
    result.json         present if and only if the run is finished; its paths are relative to the folder
    lock                held by the process that trains

Writes are atomic: temporary file, fsync, rename. `docs/run_folder.md` describes the format for others.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import JobError
from .job import TrainJob
from .job_file import load_job

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
RESULT_PATHS = ("lora", "before_after", "loss_curve")
DIGESTED_SUFFIXES = PICTURE_SUFFIXES | {".txt"}


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
    def control_path(self) -> Path:
        return self.root / "control.json"

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

    def sample_path(self, step: int, index: int) -> Path:
        return self.root / "samples" / f"step-{step:06d}" / f"{index:02d}.png"

    def lora_path(self, name: str) -> Path:
        return self.root / f"{name}.safetensors"

    def result(self) -> dict[str, Any] | None:
        """What the finished run left, its paths made absolute, or None while it is unfinished. Reads the disk."""
        if not self.result_path.exists():
            return None
        result = read_json(self.result_path)
        for name in RESULT_PATHS:
            result[name] = result[name] and str(self.root / result[name])
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

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold this folder while in here; JobError when another process holds it. A dead process holds nothing."""
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise JobError(f"{self.root} is being trained by another process; wait for it, or stop it first") from None
        try:
            yield
        finally:
            lock.release()

    def job(self) -> TrainJob:
        """The job of this run; JobError when there is none. Reads the disk."""
        return load_job(self.job_path)

    def ask_to_stop(self) -> None:
        """Tell the running process to save and stop. Writes the disk."""
        write_json(self.control_path, {"command": "stop"})

    def take_command(self) -> str | None:
        """The command that waits in the control file, if any, removing it. Touches the disk."""
        if not self.control_path.exists():
            return None
        command = read_json(self.control_path)["command"]
        self.control_path.unlink()
        return command


def run_dir_for(job: TrainJob, out_dir: Path) -> RunDir:
    """The folder that belongs to this job over this data, below `out_dir`; nothing is created."""
    digest = hashlib.sha256(job.model_dump_json(exclude={"metadata"}).encode())
    for dataset in job.datasets:
        for folder in filter(None, (dataset.instance_data_dir, dataset.mask_data_dir)):
            digest.update(dataset_digest(Path(folder)).encode())
    return RunDir(out_dir / f"{job.name}-{digest.hexdigest()[:10]}")


def dataset_digest(folder: Path) -> str:
    """Changes when a picture or caption below the folder is added, removed, renamed, resized or touched."""
    digest = hashlib.sha256()
    for path in files_below(folder, DIGESTED_SUFFIXES):
        stat = path.stat()
        digest.update(f"{path.relative_to(folder).as_posix()}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def files_below(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Files with one of these suffixes below the folder, sorted by their path; hidden ones are left out."""
    suffixes = frozenset(suffixes)
    found = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    visible = (p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return sorted(visible, key=lambda path: path.relative_to(folder).as_posix())


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
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
