"""The runs below a folder, told from what lies in their folders: state, step, loss, picture, and why one has ended.

A list of two hundred runs must cost nothing, for the browser asks again and again: of each file only what is needed is read,
and read again only once its size or times have changed. Nothing is believed of what the files hold; a run with damaged files
is listed with the reason. Needs no torch.
"""

import json
import re
import threading
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .data.find import Stamp
from .diagnosis import diagnose, noted_exit
from .event_file import first_event, newest_events
from .events import FIELDS, Event
from .run_dir import RunDir
from .saved import list_steps
from .writing import read_json

RUNNING, PAUSED, FINISHED, STOPPED, FAILED, INTERRUPTED = STATES = (
    "running",
    "paused",
    "finished",
    "stopped",  # saved on request
    "failed",  # its last word was an error
    "interrupted",  # it died without a word
)
ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._-]{0,198}[A-Za-z0-9_-])?")
KEPT = 2048  # files whose reading is remembered
LARGEST_JOB = 1 << 25  # bytes
LOG_END = 1 << 14  # bytes that are read of child.log
LINES_SHOWN = 10
SILENT = (
    "It ended without a word: it was killed, the system ran out of memory, or the computer was switched off. "
    "What was saved is whole; queue the graph again to go on."
)
TRACEBACK = "Traceback (most recent call last):"
SAME_PROCESS_NS = 2 * 10**9  # a log that was written to so shortly before the events, or after, is of the same process

_PROGRESS = {
    "step": {"step", "started"},
    "loss": {"metrics"},
    "course": {"paused", "continued", "step", "started"},
    "last": FIELDS.keys() - {"warning"},
}
_EVALUATED = {"held_out": {"evaluation"}}
_one_at_a_time = threading.Lock()


class RunSummary(NamedTuple):
    """What a list shows of a run. Times in seconds since 1970; paths inside the run folder; losses are means.

    `steps` is 0 where it is not known yet; `message` says why a run failed or what may have interrupted it; `checkpoints` are
    the steps of those that are kept.
    """

    id: str
    name: str
    state: str
    step: int
    steps: int
    loss: float | None
    held_out: float | None
    base: str
    started: float
    changed: float
    thumbnail: str | None
    lora: str | None
    message: str | None
    has_workflow: bool
    checkpoints: tuple[int, ...]


def find_run(runs_dir: Path, run_id: str) -> RunDir | None:
    """The run of that id; None where the id is none, or no run folder of that name is there. Links lead to none."""
    run = RunDir(runs_dir / run_id) if ID.fullmatch(run_id) else None
    return run if run and _is_run(run) else None


def list_runs(runs_dir: Path, busy: Collection[str] = ()) -> list[RunSummary]:
    """Every run right below the folder, the one that changed last first; `busy` as of `summarise`."""
    if not runs_dir.is_dir():
        return []
    found = (find_run(runs_dir, path.name) for path in runs_dir.iterdir())
    summaries = [summarise(run, is_busy=run.run_id in busy) for run in found if run]
    return sorted(summaries, key=lambda summary: (-summary.changed, summary.id))


def summarise(run: RunDir, *, is_busy: bool = False) -> RunSummary:
    """A run as its files tell it. `is_busy`: its process is known to be on its way, though it may not hold the lock yet."""
    job = _job(str(run.job_path), _stamp(run.job_path))
    told = _told(str(run.events_path), _stamp(run.events_path), job.is_evaluated)
    state, message = _state(run, job, told, is_busy)
    stamps = list(filter(None, map(_stamp, (run.job_path, run.events_path, run.result_path))))
    changed = max((stamp[1] for stamp in stamps), default=0) / 1e9
    step = told.newest.get("step", {})
    lora = run.lora_path(job.name)
    return RunSummary(
        run.run_id,
        job.name or run.run_id,
        state,
        _whole(step.get("resumed_from" if step.get("event") == "started" else "step")),
        _whole(step.get("steps")) or job.steps,
        _number(told.newest.get("loss", {}).get("loss")),
        _number(told.newest.get("held_out", {}).get("loss")),
        job.base,
        told.started or changed,
        changed,
        _thumbnail(run),
        lora.name if job.name and _is_plain_file(lora) else None,
        message,
        job.has_workflow,
        _checkpoints(str(run.root), _stamp(run.checkpoints_dir)),
    )


def is_held(run: RunDir) -> bool:
    """Whether a process trains in this run folder now. One look at a time: looking means to hold the lock for an instant."""
    with _one_at_a_time:
        try:
            return run.is_running()
        except OSError:  # the folder of another user, or one that is just being deleted
            return False


class _Job(NamedTuple):
    """What a summary needs of job.json; `problem` says why it is none."""

    name: str = ""
    base: str = ""
    steps: int = 0
    is_evaluated: bool = False
    has_workflow: bool = False
    problem: str = ""


class _Told(NamedTuple):
    """What a summary needs of events.jsonl."""

    started: float | None = None
    newest: dict[str, Event] = {}  # noqa: RUF012 - never changed


@lru_cache(KEPT)
def _job(path: str, stamp: Stamp | None) -> _Job:
    """As the file is while it has this stamp."""
    if stamp is None:
        return _Job(problem="job.json is missing, so this run can neither go on nor be used; delete it")
    if stamp[0] > LARGEST_JOB:
        return _Job(problem="job.json is too large to be a job; delete this run")
    try:
        job = read_json(Path(path))
        name, base, training = job["name"], job["base"]["model_flavour"], job["training"]
        evaluated = bool(job["validation"]["eval_steps_interval"])
        if not (isinstance(name, str) and isinstance(base, str) and ID.fullmatch(name)):
            raise TypeError
        return _Job(name, base, _whole(training["max_train_steps"]), evaluated, "workflow" in job["metadata"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return _Job(problem="job.json is damaged, so this run can neither go on nor be used; delete it, or mend the file")


@lru_cache(KEPT)
def _told(path: str, stamp: Stamp | None, is_evaluated: bool) -> _Told:
    """As the file is while it has this stamp."""
    if stamp is None:
        return _Told()
    try:
        first = first_event(Path(path)) or {}
        newest = newest_events(Path(path), _PROGRESS | _EVALUATED if is_evaluated else _PROGRESS)
    except OSError:
        return _Told()
    return _Told(_number(first.get("time")), newest)


@lru_cache(KEPT)
def _checkpoints(run_dir: str, stamp: Stamp | None) -> tuple[int, ...]:
    """The steps of the checkpoints, as the folder is while it has this stamp."""
    try:
        return tuple(list_steps(RunDir(Path(run_dir)))) if stamp else ()
    except OSError:
        return ()


@lru_cache(KEPT)
def _log_lines(path: str, stamp: Stamp) -> list[str]:
    """The end of the log, as the file is while it has this stamp."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, stamp[0] - LOG_END))
            return _readable(file.read(LOG_END).decode("utf-8", "replace"))
    except OSError:
        return []


def _state(run: RunDir, job: _Job, told: _Told, is_busy: bool) -> tuple[str, str | None]:
    """The state, and why it is so where that is not plain."""
    last = told.newest.get("last", {})
    if is_busy or (not run.result_path.exists() and is_held(run)):
        return (PAUSED if told.newest.get("course", {}).get("event") == "paused" else RUNNING), None
    if job.problem:
        return FAILED, job.problem
    if run.result_path.exists():
        return FINISHED, None
    lines = _lines_of_last_process(run)
    if error := _error_of(lines):
        return FAILED, error
    if last.get("event") == "stopped":
        return STOPPED, None
    if last.get("event") == "error":
        return FAILED, str(last.get("message"))
    has_spoken, cause = TRACEBACK in lines, diagnose(noted_exit(lines), lines)
    shown = [cause or ("" if has_spoken else SILENT), *lines[-LINES_SHOWN:]]
    return (FAILED if has_spoken else INTERRUPTED), "\n".join(filter(None, shown))


def _lines_of_last_process(run: RunDir) -> list[str]:
    """What the process printed that trained last; nothing where that was another than the one which ComfyUI started."""
    log, events = _stamp(run.log_path), _stamp(run.events_path)
    if log is None or (events and log[1] < events[1] - SAME_PROCESS_NS):
        return []
    return _log_lines(str(run.log_path), log)


def _readable(text: str) -> list[str]:
    """The lines of a log as a terminal would show them: of a progress bar its last state, nothing empty."""
    lines = (line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n"))
    return [line for line in lines if line]


def _error_of(lines: list[str]) -> str:
    """The error that the program has ended with, which it prints as its last line; empty where it did not."""
    try:
        report = json.loads(lines[-1]) if lines else None
    except (ValueError, RecursionError):
        return ""
    return str(report["error"]) if isinstance(report, dict) and "error" in report else ""


def _thumbnail(run: RunDir) -> str | None:
    """The first picture of the newest step, as a path inside the run folder."""
    samples = run.root / "samples"
    try:
        steps = sorted((path for path in samples.iterdir() if not path.is_symlink()), reverse=True)
        for step in steps:
            pictures = sorted(path.name for path in step.iterdir() if path.suffix == ".png" and _is_plain_file(path))
            if pictures:
                return f"{samples.name}/{step.name}/{pictures[0]}"
    except OSError:  # none were made, or the folder is just being deleted
        return None
    return None


def _is_run(run: RunDir) -> bool:
    try:
        is_folder = run.root.is_dir() and not run.root.is_symlink()
    except OSError:
        return False
    return is_folder and any(map(_is_plain_file, (run.job_path, run.events_path)))


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _stamp(path: Path) -> Stamp | None:
    try:
        told = path.stat()
    except OSError:
        return None
    return told.st_size, told.st_mtime_ns, told.st_ctime_ns


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
