"""From a job and a folder to its result: the folder is taken, the job is checked, and the run begins, goes on, or is refused.

All is told from the first moment on, looking at the files included, and a wish to stop is heeded there as later. A job that is
refused before anything was begun leaves nothing behind. Where several processes train together, all come this way; the first
alone takes the folder, tells, and hears what is asked for.
"""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from .context import RunContext
from .control import Control
from .data.shares import most_together
from .disk import disk_watched
from .errors import JobError
from .events import EventLog, WarningEvents
from .guard import INDEXING, TRAINING, memory_watched
from .half_written import clear_abandoned
from .helpers import count_devices, with_helpers
from .job import TrainJob
from .job_changes import Change
from .job_file import dump_job
from .launched import SHARES_WEIGHTS, Place, launched_place, said_of_zero, zero_stage
from .plan.plan import GIB, Plan, ready_memory
from .processes import ALONE, Group, ProcessLost, joined
from .progress import ProgressBar
from .publish import push_finished
from .run_dir import RunDir
from .setup import Setup, prepare
from .siblings import begin_from_sibling
from .trackers import Reporter
from .train import run
from .trainee import loading_phase
from .webhook import Webhook
from .writing import write_atomically


def launch(job: TrainJob, run_dir: RunDir, cache_dir: Path, changes: Sequence[Change], *, watch_stdin: bool) -> dict[str, Any]:
    """Train the job in its folder, or go on with it there; what result.json holds, nothing in other processes than the first.
    `changes` are those against the job that the folder has. JobError where it is refused, StopRequested once it was stopped and
    saved."""
    work, training, place = partial(begin, job, run_dir, cache_dir, changes), job.training, launched_place()
    count = place.count if place else count_devices(training.num_devices, training.device)
    check_shared(job, count)
    if place:
        check_engine(place)
        in_step = place.is_sharded or zero_stage() == SHARES_WEIGHTS
        together = joined(place.rank, place.count, local_rank=place.local_rank, device=training.device, in_step=in_step)
    else:
        together = with_helpers(count, training.device, work) if count > 1 else nullcontext(ALONE)
    with together as group:
        return work(group=group, watch_stdin=watch_stdin)


def begin(
    job: TrainJob, run_dir: RunDir, cache_dir: Path, changes: Sequence[Change], *, group: Group, watch_stdin: bool = False
) -> dict[str, Any]:
    """The same in one of the processes that do it together."""
    if not group.is_first:
        with listening(run_dir, cache_dir, group) as context:
            group.wait()
            setup = prepare(job, cache_dir)
            return run(replace(setup, num_recomputed=group.tell(None)), context)
    is_new, has_job = not run_dir.events_path.exists(), run_dir.job_path.exists()
    try:
        with disk_watched(run_dir), run_dir.owned(), told(job, run_dir, cache_dir, group, watch_stdin=watch_stdin) as context:
            run_dir.clear_unfinished(until=psutil.Process().create_time())
            clear_abandoned(cache_dir)
            run_dir.result_path.unlink(missing_ok=True)  # it is damaged, or will not be true any more
            if not has_job:
                write_atomically(run_dir.job_path, dump_job(job).encode())
            with memory_watched(job, INDEXING):
                setup = prepare(job, cache_dir, context.stoppable("index"))
                group.wait()  # the others find what was learned of the files
                measured, plan = ready_memory(one_of(setup, group.count))
            if plan is not None:
                context.events.emit("plan", **planned(plan, setup))
            if replaced := said_of_zero():
                context.events.emit("warning", message=replaced)
            if changes:
                named = [change._asdict() for change in changes]
                context.events.emit("job_changed", changes=named, begins_from=None)
            else:
                begin_from_sibling(setup, context)
            with memory_watched(job, TRAINING):
                result = run(replace(setup, num_recomputed=group.tell(measured.num_recomputed)), context)
            push_finished(job, run_dir)
            return result
    except JobError:
        if is_new and not run_dir.manifest_path.exists():
            leave_nothing(run_dir, has_job=has_job)
        raise


def check_engine(place: Place) -> None:
    """JobError where accelerate's configuration names what this trainer does not use."""
    if place.engine:
        raise JobError(
            f"accelerate's configuration asks for {place.engine}, with which this trainer does not work; plain data "
            "parallelism (--multi_gpu) suits an adapter whose base fits on one card, --use_fsdp a base that does not"
        )


def check_shared(job: TrainJob, count: int) -> None:
    """JobError where there are more processes than samples in a step."""
    batch, accumulation = job.training.train_batch_size, job.training.gradient_accumulation_steps
    if batch * accumulation < count:
        raise JobError(
            f"{count} processes cannot share a step of {batch * accumulation} (training.train_batch_size {batch} x "
            f"gradient_accumulation_steps {accumulation}); raise one of them so that there are at least {count} samples a "
            "step, or start fewer processes (training.num_devices, or the launcher's number)"
        )


def one_of(setup: Setup, count: int) -> Setup:
    """The setup with the batch that one of so many processes passes through the model, and as many samples a step."""
    training = setup.job.training
    samples = training.train_batch_size * training.gradient_accumulation_steps
    batch = most_together(training.train_batch_size, training.gradient_accumulation_steps, count)
    shares = {"train_batch_size": batch, "gradient_accumulation_steps": math.ceil(samples / batch)}
    training = training.model_copy(update=shares)
    return replace(setup, job=setup.job.model_copy(update={"training": training}))


@contextmanager
def listening(run_dir: RunDir, cache_dir: Path, group: Group) -> Iterator[RunContext]:
    """In here a process that is not the first heeds signals, and tells nothing but why it has to end."""
    control, core = Control(None), logging.getLogger(__package__)
    control.watch_signals()
    level = core.level
    core.setLevel(logging.ERROR)  # the first warns of the same
    events = EventLog(Path(os.devnull))
    try:
        yield RunContext(run_dir, cache_dir, events, control, control.next, group)
    except ProcessLost:
        raise
    except JobError as error:
        group.leave_word(str(error))
        raise
    finally:
        core.setLevel(level)
        events.close()


@contextmanager
def told(job: TrainJob, run_dir: RunDir, cache_dir: Path, group: Group, *, watch_stdin: bool) -> Iterator[RunContext]:
    """In here what happens is told: to the events, the terminal, the job's trackers, and whoever may wish for something."""
    control, bar, reporter, warnings = Control(run_dir), ProgressBar(), Reporter(job, run_dir), WarningEvents()
    webhook = Webhook(job, run_dir)
    control.watch_signals()
    if watch_stdin:
        control.watch_stdin()
    core = logging.getLogger(__package__)
    core.addHandler(warnings)
    events = EventLog(run_dir.events_path, bar, reporter, webhook)
    warnings.connect(events)
    try:
        with disk_watched(run_dir):
            yield RunContext(run_dir, cache_dir, events, control, control.next, group)
    except JobError as error:
        events.emit("error", message=str(error))
        raise
    finally:
        webhook.close()
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
    if run_dir.root.is_dir() and not any(run_dir.root.iterdir()):
        os.rmdir(run_dir.root)
