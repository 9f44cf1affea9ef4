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
    owner.json          which process that is, while it does

Writes are atomic: temporary file, fsync, rename. What a later start believes carries its own digest, or another file has it, so
that no bit that a disk has turned is ever trained on. `docs/run_folder.md` describes the format for others.
"""

import hashlib
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .commands import Command, make_command, read_command
from .data.find import find_files
from .errors import JobError
from .file_names import expanded, problem_of_path
from .job import TrainJob
from .job_file import load_job, parse_job
from .specs.publishing import PublishingSpec
from .writing import Damaged, digest_of, read_json, read_sealed, write_json, write_sealed

RUN_FOLDER_VERSION = 1  # of what docs/run_folder.md promises; another one where a file goes or changes its meaning
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jxl"})
LORA_SUFFIXES = frozenset({".safetensors"})
RESULT_KINDS = {"steps": int, "samples": list, "losses": list, "evaluations": list, "digests": dict}
RESULT_PATHS = {  # and the kinds of files that they may be
    "lora": LORA_SUFFIXES,
    "ema_lora": LORA_SUFFIXES,
    "best_lora": LORA_SUFFIXES,
    "before_after": PICTURE_SUFFIXES,
    "loss_curve": PICTURE_SUFFIXES,
}
DIGESTED_SUFFIXES = PICTURE_SUFFIXES | {".txt", ".caption", ".csv", ".jsonl", ".parquet"}
LENGTH_FIELDS = {"max_train_steps", "num_train_epochs"}  # of TrainingSpec
OUTSIDE_THE_DIGEST = {  # of a job: its length, and what only shows it
    "metadata": True,
    "publishing": True,
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
    def owner_path(self) -> Path:
        return self.root / "owner.json"

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
        """What the finished run left, its paths made absolute, or None while it is unfinished. Damaged where the file is that,
        or names what is no LoRA or picture of this run: a request may have put it here. Reads the disk."""
        if not self.result_path.exists():
            return None
        result = read_sealed(self.result_path)
        result.setdefault("digests", {})  # an earlier version wrote none
        if not all(isinstance(result.get(name), kind) for name, kind in RESULT_KINDS.items()):
            raise Damaged(f"{self.result_path} is damaged: it is no result")
        for name, suffixes in RESULT_PATHS.items():
            result[name] = result.get(name) and self._own(result[name], suffixes)
        result["samples"] = [self._own(path, PICTURE_SUFFIXES) for path in result["samples"]]
        for name in result["digests"]:
            self._own(name, LORA_SUFFIXES)
        return {**result, "run_id": self.run_id, "run_dir": str(self.root)}

    def _own(self, path: Any, suffixes: Collection[str]) -> str:
        """The absolute path of a file of this run, of such a kind; Damaged where it is none."""
        found = self.root / str(path)
        is_one = found.suffix in suffixes and not problem_of_path(found)
        if not is_one or self.root.resolve() not in found.resolve().parents:
            raise Damaged(f"{self.result_path} is damaged: it names {str(path)[:200]!r}, which is no file of this run")
        return str(found)

    def intact_result(self) -> dict[str, Any] | None:
        """As `result`, but None, with a warning, where that or a LoRA at its end is not what was written: to be finished once
        more, from the last checkpoint. Reads all of those files."""
        try:
            result = self.result()
        except Damaged as damage:
            log.warning("%s", damage)
            return None
        digests = result["digests"] if result else {}
        damaged = [name for name, digest in digests.items() if digest_of(self.root / name) != digest]
        if damaged:
            log.warning("%s in %s: damaged or gone; the run is finished once more", ", ".join(damaged), self.root)
        return None if damaged else result

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write the result, with its paths relative, so that the folder may be moved; returns `result()`. Writes the disk."""
        stored = dict(result)
        for name in RESULT_PATHS:
            stored[name] = result[name] and result[name].relative_to(self.root).as_posix()
        stored["samples"] = [path.relative_to(self.root).as_posix() for path in result["samples"]]
        stored["digests"] = {name: digest_of(self.root / name) for name in (stored["lora"], stored["ema_lora"]) if name}
        write_sealed(self.result_path, stored)
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
            raise RunIsBusy(
                f"{self.root} is being trained by another process{self._owner()}; wait for it, or stop it first"
            ) from None
        try:
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            write_json(self.owner_path, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
            yield
        finally:
            with suppress(OSError):  # the folder has gone meanwhile
                self.owner_path.unlink(missing_ok=True)
            lock.release()

    def _owner(self) -> str:
        """Who holds the folder, in brackets; nothing where that cannot be read, as in its first moment."""
        try:
            owner = read_json(self.owner_path)
            return f" (number {owner['pid']} on {owner['host']}, since {owner['since']})"
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def check_there(self) -> None:
        """JobError where the folder has gone while its run goes on: nothing may be written into one made anew in its place."""
        if not self.job_path.exists():
            raise JobError(
                f"the run folder {self.root} is gone: it was deleted or renamed, or its drive or network went away. Bring it "
                "back and start again, to go on from its last checkpoint"
            )

    def job(self) -> TrainJob:
        """The job of this run, as the manifest holds it, which knows its own digest; a job.json that says otherwise was damaged
        or edited, and only its metadata are taken. JobError when there is none. Reads the disk."""
        used = self._used_job()
        try:
            held = load_job(self.job_path)
        except JobError:
            if used is None:
                raise
            held = None
        if used is None or (held and _as_trained(held) == _as_trained(used)):
            assert held is not None
            return held
        log.warning(
            "%s is damaged, or was edited: the run goes on with the job in manifest.json. To change a run's job, give another "
            "one to `flux-lora resume --job`",
            self.job_path,
        )
        return used.model_copy(update={"metadata": held.metadata if held else {}})

    def _used_job(self) -> TrainJob | None:
        """The job that was trained so far, without its metadata; None where none was, or the manifest does not tell."""
        try:
            return parse_job(read_sealed(self.manifest_path)["job"], str(self.manifest_path))
        except FileNotFoundError:
            return None
        except JobError as error:  # damaged, or of another version
            log.warning("%s", error)
            return None

    def clear_unfinished(self, until: float) -> None:
        """Remove what a process that died was writing, and the commands from before that moment, which it has not obeyed.
        Nobody may write here now, but for newer commands. `until` in seconds since 1970. Touches the disk."""
        for path in [*self.root.rglob("*.tmp"), *self.root.rglob("*.partial")]:
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.startswith("control"):
                path.unlink()
        for path in self.root.glob("control*"):
            with suppress(FileNotFoundError):  # whole by now
                if path.stat().st_mtime < until:
                    path.unlink()

    def check_job(self, job: TrainJob) -> None:
        """JobError where this folder has gone on with a job that is not this one. Reads the disk."""
        if not self.manifest_path.exists():  # nothing was begun, so job.json is written anew
            return
        try:
            held = self.job()
        except JobError as error:
            log.warning("%s; it is written anew", error)
            return
        if _as_trained(held) != _as_trained(job):
            raise JobError(
                f"{self.root} has gone on with another job (`flux-lora resume --job`), so it is not what this job trains; go "
                "on with it by its folder, or give this job another name"
            )

    def ask(self, name: str, prompt: str = "") -> None:
        """Tell the running process, which obeys within a step: one of COMMANDS, with sample a prompt to picture instead of the
        job's own. Several are obeyed in their order. JobError where that is no command. Writes the disk."""
        command = make_command(name, prompt)
        waiting = [int(path.name.split("-")[1]) for path in self.root.glob(f"control-{'[0-9]' * 20}-*.json")]
        number = max([time.time_ns(), *(one + 1 for one in waiting)])  # the clock may have been set back since
        write_json(self.root / f"control-{number:020d}-{uuid.uuid4().hex[:6]}.json", command.to_json())

    def take_commands(self) -> list[Command]:
        """The commands that wait, the oldest first, removing them; what is none is passed over with a warning. Touches the
        disk."""
        commands = []
        for path in sorted(path for path in self.root.glob("control*.json") if path.is_file()):
            taken = path.with_suffix(".taken")
            os.replace(path, taken)
            try:
                commands.append(read_command(read_json(taken)))
            except (ValueError, OSError, RecursionError) as error:
                log.warning("%s held no command: %s", path, error)
            taken.unlink()
        return commands


def _as_trained(job: TrainJob) -> TrainJob:
    """The job without what may differ between two starts of one run: the graph in its header, who computes it, who sees it."""
    training = job.training.model_copy(update={"num_devices": 1})
    return job.model_copy(update={"metadata": {}, "training": training, "publishing": PublishingSpec()})


def run_dir_for(job: TrainJob, out_dir: Path) -> RunDir:
    """The folder that belongs to this job over this data and these LoRAs to start from, below `out_dir`; nothing is created."""
    digest = hashlib.sha256(job.model_dump_json(exclude=OUTSIDE_THE_DIGEST).encode())
    for dataset in job.datasets:
        if not dataset.disabled:
            digest.update(dataset_digest(*(getattr(dataset, field) for field in READ_BY_DATASETS)).encode())
    for file in filter(None, (job.lora.init_lora, job.base.assistant_lora_path)):
        path = expanded(file)
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
        path = expanded(given)
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
