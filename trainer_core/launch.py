"""From a job and a folder to its result: the folder is taken, the job is checked, and the run begins, goes on, or is refused.

All is told from the first moment on, looking at the files included, and a wish to stop is heeded there as later. A job that is
refused before anything was begun leaves nothing behind.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .context import RunContext
from .control import Control
from .errors import JobError
from .events import EventLog, WarningEvents
from .job import TrainJob
from .job_changes import Change
from .job_file import dump_job
from .plan.plan import GIB, Plan, ready_memory
from .progress import ProgressBar
from .run_dir import RunDir, write_atomically
from .setup import Setup, prepare
from .siblings import begin_from_sibling
from .trackers import Reporter
from .train import run
from .trainee import loading_phase


def launch(job: TrainJob, run_dir: RunDir, cache_dir: Path, changes: Sequence[Change], *, watch_stdin: bool) -> dict[str, Any]:
    """Train the job in its folder, or go on with it there; what result.json holds. `changes` are those against the job that the
    folder has. JobError where it is refused, StopRequested once it was stopped and saved."""
    is_new, has_job = not run_dir.events_path.exists(), run_dir.job_path.exists()
    try:
        with run_dir.owned(), told(job, run_dir, cache_dir, watch_stdin=watch_stdin) as context:
            run_dir.clear_unfinished()
            if not has_job:
                write_atomically(run_dir.job_path, dump_job(job).encode())
            setup = prepare(job, cache_dir, context.stoppable("index"))
            plan = ready_memory(setup)
            if plan is not None:
                context.events.emit("plan", **planned(plan, setup))
            if changes:
                run_dir.result_path.unlink(missing_ok=True)
                named = [change._asdict() for change in changes]
                context.events.emit("job_changed", changes=named, begins_from=None)
            else:
                begin_from_sibling(setup, context)
            return run(setup, context)
    except JobError:
        if is_new and not run_dir.manifest_path.exists():
            leave_nothing(run_dir, has_job=has_job)
        raise


@contextmanager
def told(job: TrainJob, run_dir: RunDir, cache_dir: Path, *, watch_stdin: bool) -> Iterator[RunContext]:
    """In here what happens is told: to the events, the terminal, the job's trackers, and whoever may wish for something."""
    control, bar, reporter, warnings = Control(run_dir), ProgressBar(), Reporter(job, run_dir), WarningEvents()
    control.watch_signals()
    if watch_stdin:
        control.watch_stdin()
    core = logging.getLogger(__package__)
    core.addHandler(warnings)
    events = EventLog(run_dir.events_path, bar, reporter)
    warnings.connect(events)
    try:
        yield RunContext(run_dir, cache_dir, events, control, control.next)
    except JobError as error:
        events.emit("error", message=str(error))
        raise
    finally:
        core.removeHandler(warnings)
        bar.close()
        events.close()
        reporter.close()


def planned(plan: Plan, setup: Setup) -> dict[str, Any]:
    """The fields of the event `plan`: GiB by the names that the phases have in the events."""
    names = {"load": loading_phase(setup.job.base), "pictures": "sample"}

    def gib(host: int, card: int) -> dict[str, float]:
        return {"ram": round(host / GIB, 3)} | ({"card": round(card / GIB, 3)} if plan.room.card else {})

    phases = {names.get(phase.name, phase.name): gib(phase.host + phase.mapped, phase.card) for phase in plan.phases}
    return {"phases": phases, "room": gib(plan.room.host, plan.room.card), "verdict": plan.verdict}


def leave_nothing(run_dir: RunDir, *, has_job: bool) -> None:
    """Take away what a refused start has written, and the folder if nothing else is in it."""
    for path in (run_dir.events_path, run_dir.origin_path, run_dir.root / "lock", *(() if has_job else (run_dir.job_path,))):
        path.unlink(missing_ok=True)
    if not any(run_dir.root.iterdir()):
        os.rmdir(run_dir.root)
