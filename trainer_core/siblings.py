"""A job that differs from an earlier one by its length alone begins where that one has got to.

Runs with the same trunk (`run_dir.py`) are siblings. One that has nothing of its own yet takes over the newest whole checkpoint
of a sibling that it would pass through itself, with the history, the pictures and the events up to there. It copies: each
folder stays whole by itself, the shorter run stays what it was, and either may be deleted.

Where nothing depends on the length of a run, the longer one ends with the same bytes as if it had been trained in one go. A
learning rate that falls towards the end, or a route that ends with a share of the run, does depend on it. Then a longer run
still goes on, with a warning, and `origin.json` says so for good; a shorter one is trained from its own beginning.
"""

import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .checkpoint import history_in, undamaged_state
from .context import RunContext
from .errors import JobError
from .events import EventReader, is_current
from .history import History
from .job import TrainJob
from .job_changes import allowed_changes
from .optim import learning_rate_at
from .run_dir import OUTSIDE_THE_DIGEST, RunDir, RunIsBusy
from .saved import STATE_FILE, checkpoint_dir, list_steps
from .setup import Setup
from .tread import resolve_routes
from .writing import Damaged, read_sealed, write_sealed

LENGTH = re.compile(r"(.+-)(\d+|\d+epochs)")
TAKEN_OVER = frozenset({"step", "metrics", "evaluation", "sample", "score"})  # kinds of events
PICTURE_FIELDS = ("path", "compared")  # of the event `sample`

log = logging.getLogger(__name__)


class Origin(NamedTuple):
    """Where a run begins. Exact: as if it had been trained in one go."""

    run: RunDir
    step: int
    is_exact: bool


def begin_from_sibling(setup: Setup, context: RunContext) -> None:
    """Take over the furthest that a sibling has got, where this run has nothing yet. JobError while that one is trained."""
    own = context.run_dir
    if own.checkpoints_dir.exists():
        return
    for origin in sorted(find_origins(setup, own), key=lambda one: (one.step, one.is_exact), reverse=True):
        try:
            with origin.run.owned():
                if _take_over(setup, context, origin):
                    return
        except RunIsBusy:
            raise JobError(
                f"this job differs from {origin.run.run_id} by its length alone and would go on from its step {origin.step}, "
                "but that run is being trained by another process; wait for it, stop it first, or give this job another name"
            ) from None


def find_origins(setup: Setup, own: RunDir) -> Iterator[Origin]:
    """Each checkpoint of each sibling that this run may begin from."""
    for run in find_siblings(own):
        steps, total = list_steps(run), _length(run, setup.job)
        if total is None:
            continue
        try:
            inherited = read_sealed(run.origin_path)["exact"]
        except FileNotFoundError:
            inherited = True
        except Damaged as damage:  # so nobody knows what it is worth
            log.warning("%s; nothing is taken over from that run", damage)
            continue
        for step in steps:
            is_exact = inherited and same_until(setup, step, total)
            if 0 < step <= setup.num_steps and (is_exact or total < setup.num_steps):
                yield Origin(run, step, is_exact)


def find_siblings(own: RunDir) -> list[RunDir]:
    """The folders beside this one whose names differ from it by the length alone."""
    named = LENGTH.fullmatch(own.run_id)
    if named is None or not own.root.parent.is_dir():
        return []
    others = (LENGTH.fullmatch(path.name) for path in sorted(own.root.parent.iterdir()))
    found = [other.group() for other in others if other and other[1] == named[1] and other.group() != own.run_id]
    return [RunDir(own.root.parent / name) for name in found]


def same_until(setup: Setup, step: int, other_length: int) -> bool:
    """Whether a run of another length trains the same in the steps before this one: learning rate, routes, and compiling, which
    a short one leaves."""
    job, mine = setup.job, setup.num_steps
    if setup.compiles != replace(setup, num_steps=other_length).compiles:
        return False
    rates = [[learning_rate_at(job.optimizer, number, length) for number in range(step)] for length in (mine, other_length)]
    if rates[0] != rates[1]:
        return False
    other_spans = resolve_routes(job.routes, setup.shape.num_double + setup.shape.num_single, other_length)
    ends = [(one.until_step, other.until_step) for one, other in zip(setup.spans, other_spans, strict=True)]
    return all(a == b or min(a, b) >= step for a, b in ends)


def _length(run: RunDir, job: TrainJob) -> int | None:
    """The length in steps of a run of the same job but for that; None where it is none, for it may have been changed since."""
    if not (run.job_path.exists() and run.manifest_path.exists()):
        return None
    try:
        if _without_length(run.job()) != _without_length(job):
            return None
        return read_sealed(run.manifest_path)["steps"]
    except JobError:  # of another version, or damaged
        return None


def _without_length(job: TrainJob) -> dict[str, Any]:
    return job.model_dump(exclude=OUTSIDE_THE_DIGEST)


def _take_over(setup: Setup, context: RunContext, origin: Origin) -> bool:
    """Copy what the sibling had at that step; False where its checkpoint is damaged, or lacks that of its best evaluation."""
    own, sibling = context.run_dir, origin.run
    folder = checkpoint_dir(sibling.checkpoints_dir, origin.step)
    state = undamaged_state(folder)
    if state is None:
        return False
    history = _as_its_own(setup, history_in(folder, state), sibling)
    if history is None:
        return False
    begins_from = {"run_id": sibling.run_id, "step": origin.step, "exact": origin.is_exact}
    write_sealed(own.origin_path, begins_from)
    partial = own.checkpoints_dir.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for step in {origin.step, history.best.step if history.best else origin.step}:
        shutil.copytree(checkpoint_dir(sibling.checkpoints_dir, step), checkpoint_dir(partial, step))
    told = state["history"] | history.to_json()  # of an earlier version it has the losses, too, which stay
    write_sealed(checkpoint_dir(partial, origin.step) / STATE_FILE, state | {"history": told})
    _copy_pictures(sibling, own, origin.step)
    context.events.adopt(_events_until(setup, sibling, own, origin.step))
    changes = [change._asdict() for change in allowed_changes(sibling.job(), setup.job) if change.field != "metadata"]
    context.events.emit("job_changed", changes=changes, begins_from=begins_from)
    partial.rename(own.checkpoints_dir)  # all at once, and last: what was cut short before is done again
    log.info("going on from step %d of %s", origin.step, sibling.run_id)
    if not origin.is_exact:
        log.warning(
            "this run goes on from step %d of %s, a shorter one, whose learning rate, routes or compiling took another "
            "course; so it is not what training %d steps in one go would give. For that, give it another name, or use a "
            "constant rate",
            origin.step,
            sibling.run_id,
            setup.num_steps,
        )
    return True


def _as_its_own(setup: Setup, history: History, sibling: RunDir) -> History | None:
    """The history without what was measured only because the sibling ended there; with it, where that alone is the best that is
    still on disk; None where the best is not."""
    kept = list_steps(sibling)
    due = [evaluation for evaluation in history.evaluations if _is_due(evaluation.step, _evaluations(setup))]
    for evaluations in (due, history.evaluations):
        history.evaluations = evaluations
        if history.best is None or history.best.step in kept:
            return history
    return None


def _evaluations(setup: Setup) -> int:
    return setup.job.validation.eval_steps_interval


def _is_due(step: int, interval: int) -> bool:
    return step == 0 or (interval > 0 and step % interval == 0)


def _copy_pictures(sibling: RunDir, own: RunDir, step: int) -> None:
    for kind in ("samples", "compared"):
        for folder in (sibling.root / kind).glob("step-*"):
            if int(folder.name.split("-")[1]) <= step:
                shutil.copytree(folder, own.root / kind / folder.name, dirs_exist_ok=True)


def _events_until(setup: Setup, sibling: RunDir, own: RunDir, step: int) -> Iterator[dict[str, Any]]:
    """What the sibling told of its course up to this step, with the pictures where they are now."""
    intervals = {"metrics": setup.job.training.log_interval, "evaluation": _evaluations(setup)}
    for event in EventReader(sibling.events_path).new():
        if event["event"] not in TAKEN_OVER or event["step"] > step or not is_current(event):
            continue
        if event["event"] in intervals and not _is_due(event["step"], intervals[event["event"]]):
            continue
        moved = {name: _moved(event[name], sibling, own) for name in PICTURE_FIELDS if event.get(name)}
        yield event | moved


def _moved(path: str, sibling: RunDir, own: RunDir) -> str:
    """The path in this run's folder of a file in the sibling's, wherever that was when the event was written."""
    parts = Path(path).parts
    return str(own.root.joinpath(*parts[parts.index(sibling.run_id) + 1 :])) if sibling.run_id in parts else path
