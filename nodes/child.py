"""The child process that trains: started, watched through its event file, stopped gracefully, never left behind.

Training has a process of its own: no inference mode, its own CUDA allocator, memory that is truly given back, and a crash that
leaves ComfyUI up. Cancel is nothing special here: the caller's `on_tick` raises, and the way out of `train` asks the child to
save, waits for it, and lets the exception pass. Should ComfyUI itself die, the child's standard input ends, which it takes as
the same wish.
"""

import errno
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from ..trainer_core.diagnosis import diagnose, last_lines, note_exit
from ..trainer_core.errors import JobError
from ..trainer_core.events import EventReader, Listener
from ..trainer_core.job import TrainJob
from ..trainer_core.job_file import dump_job
from ..trainer_core.run_dir import RunDir, run_dir_for
from ..trainer_core.writing import write_atomically
from .environment import child_environment
from .process import start
from .standby import STANDBY

POLL_SECONDS = 0.1
SAVE_SECONDS = 600.0  # how long a child may take to end its step, save and leave before it is ended
DONE, WRONG_INPUT, STOPPED = 0, 2, 3  # exit codes, as in trainer_core/cli.py
LOG_LINES_SHOWN = 30
NO_ROOM = 1 << 16  # bytes

log = logging.getLogger(__name__)


class TrainingStopped(JobError):
    """The training saved and ended because somebody asked it to, by the monitor's button or `flux-lora ask`."""


def train(
    job: TrainJob,
    home: Path,
    *,
    attach: Callable[[RunDir], AbstractContextManager[Any]] = nullcontext,
    free_memory: Callable[[], None],
    on_event: Listener,
    on_tick: Callable[[], None],
    allow_network: bool = False,
) -> dict[str, Any]:
    """Train the job below the folder `home`, or go on with it, and return what result.json holds; at once if it is finished.

    All of it happens within `attach` of the run. `free_memory` is called before a child starts; `on_tick` several times a
    second while it runs, and may raise to cancel. JobError carries what the user can mend; TrainingStopped is one of them.
    With `allow_network` the child gets the owner's proxies and tokens, and none that waited is taken.
    """
    run = run_dir_for(job, home / "runs")
    run.check_job(job)
    finished = run.intact_result()
    if finished is None:
        write_atomically(run.job_path, dump_job(job).encode())  # before anybody is told of the run
    with attach(run):
        return finished or _train(run, home, free_memory, on_event, on_tick, allow_network)


def _train(
    run: RunDir,
    home: Path,
    free_memory: Callable[[], None],
    on_event: Listener,
    on_tick: Callable[[], None],
    allow_network: bool,
) -> dict[str, Any]:
    """Start the child that trains the run, or take the one that waits; follow it to its end, and say what came of it."""
    free_memory()
    if not run.is_running():
        run.take_commands()  # what a dead process was told; one that waited is older, and would take it for its own
    events = EventReader(run.events_path, from_end=True)
    environment = child_environment(os.environ, allow_network=allow_network)
    command = ["run", str(run.job_path), "--out", str(run.root.parent), "--cache", str(home / "cache")]
    words = [*command, "--json", "--watch-stdin"]
    with run.log_path.open("ab") as child_log:
        child = STANDBY.take(words, child_log, environment, on_tick)
        child = child or start(words, child_log, environment)
        has_begun = False
        try:
            while child.poll() is None:
                on_tick()
                for event in events.new():
                    has_begun = True
                    on_event(event)
                time.sleep(POLL_SECONDS)
        finally:
            _end(child, run, has_begun=has_begun)
    for event in events.new():
        on_event(event)
    return _outcome(child.returncode, run)


def check(job: TrainJob, home: Path, chart: Path, *, probe: bool, on_tick: Callable[[], None]) -> dict[str, Any]:
    """What `flux-lora check` says of the job; its plan is drawn into the file `chart`. JobError carries what the user can mend.

    `on_tick` is called several times a second, and may raise to cancel.
    """
    job_path = chart.with_name("job.json")
    write_atomically(job_path, dump_job(job).encode())
    command = ["check", str(job_path), "--out", str(home / "runs"), "--chart", str(chart)]
    return _answer([*command, "--probe"] if probe else command, chart.parent, on_tick)


def compare(
    run: RunDir, home: Path, grid: Path, checkpoints: str, strengths: str, *, on_tick: Callable[[], None]
) -> dict[str, Any]:
    """What `flux-lora compare` says of the run; the pictures are drawn into the file `grid`. As `check` otherwise."""
    wishes = ["--checkpoints", checkpoints, "--strengths", strengths, "--grid", str(grid), "--out", str(home / "runs")]
    return _answer(["compare", str(run.root), *wishes], grid.parent, on_tick)


def make_lora(command: list[str], out: Path, *, on_tick: Callable[[], None]) -> dict[str, Any]:
    """What a tool on LoRA files says (`flux-lora convert` and the like), whose file is `out`. As `check` otherwise."""
    return _answer([*command, "--out", str(out)], out.parent, on_tick)


def _answer(command: list[str], folder: Path, on_tick: Callable[[], None]) -> dict[str, Any]:
    """The report of a command that is run to its end; its log is kept in the folder meanwhile."""
    log_path = folder / "child.log"
    with log_path.open("wb") as log_file:
        child = start([*command, "--json"], log_file, child_environment(os.environ))
        try:
            while child.poll() is None:
                on_tick()
                time.sleep(POLL_SECONDS)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            child.stdin.close()
    report = _report(log_path.read_bytes())
    if "error" in report:
        raise JobError(report["error"])
    if child.returncode != DONE:
        raise RuntimeError(_death(f"flux-lora {command[0]}", child.returncode, log_path))
    return report


def _end(child: "subprocess.Popen[bytes]", run: RunDir, *, has_begun: bool) -> None:
    """Leave no child: one that still runs is asked to save, given time, and then ended; one that is still loading libraries has
    nothing to save, and hears nothing. Also clears unread commands, and files that it was just writing."""
    assert child.stdin is not None
    if child.poll() is None and not has_begun:
        child.kill()
        child.wait()
    elif child.poll() is None:
        log.info("waiting for the training to save and stop")
        child.stdin.close()  # the wish to stop that needs no disk
        try:
            child.wait(SAVE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    child.stdin.close()
    if not run.is_running():  # another process may train here, which this child found
        run.take_commands()
        run.clear_unfinished(time.time())


def _outcome(code: int, run: RunDir) -> dict[str, Any]:
    """The result of a run that is over, or the reason why there is none."""
    result = run.result()
    if code == DONE and result is not None:
        return result
    report = _report(run.log_path.read_bytes())
    if code == WRONG_INPUT and "error" in report:
        if set(run.root.iterdir()) == {run.log_path, run.job_path}:  # refused before anything was begun: leave nothing
            shutil.rmtree(run.root)
        raise JobError(report["error"])
    if code == STOPPED:
        raise TrainingStopped(f"training was stopped at step {report['stopped_at']}; queue again to go on")
    death = _death("the training", code, run.log_path)
    with suppress(OSError):  # on a full disk
        note_exit(run.log_path, code)
    raise RuntimeError(death)


def _death(what: str, code: int, log_path: Path) -> str:
    """How a child ended that did not come to its end, why, and what it said last."""
    lines = last_lines(log_path)
    is_full = shutil.disk_usage(log_path.parent).free < NO_ROOM  # then it could not say so itself
    why = diagnose(code, [*lines, os.strerror(errno.ENOSPC)] if is_full else lines)
    tail = "\n".join(lines[-LOG_LINES_SHOWN:])
    return f"{what} died (exit code {code}){why and ': '}{why}\nThe last lines of {log_path}:\n{tail}"


def _report(log: bytes) -> dict[str, Any]:
    """The one JSON object that the command prints as its last line, or nothing where it did not get so far."""
    try:
        report = json.loads(log.decode("utf-8", "replace").splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {}
    return report if isinstance(report, dict) else {}
