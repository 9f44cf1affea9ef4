"""The course of a run: how its datasets take turns, how many steps it has, and whether each has something to draw from."""

import logging
import math
from collections.abc import Sequence

from .data.order import Mix, Order, Stretch, Turns, cut_stretches
from .data.sample import Sample
from .errors import JobError
from .job import TrainJob

log = logging.getLogger(__name__)


def mix_of(job: TrainJob) -> Mix:
    """How the job's datasets share the run."""
    return Mix(
        turns={spec.id: Turns(spec.probability, spec.start_step, spec.end_step) for spec in job.datasets if not spec.disabled},
        by_size=job.training.data_backend_sampling == "auto-weighting",
        accumulation=job.training.gradient_accumulation_steps,
    )


def order_of(job: TrainJob, samples: Sequence[Sample]) -> Order:
    """The order in which the run shows these samples."""
    return Order(samples, batch_size=job.training.train_batch_size, seed=job.training.seed, mix=mix_of(job))


def count_steps(job: TrainJob, order: Order) -> int:
    """The run's length in optimiser steps; whole epochs are rounded up to a whole step."""
    training = job.training
    if training.max_train_steps:
        return training.max_train_steps
    if len(cut_stretches(mix_of(job).turns)) > 1:
        raise JobError(
            "training.num_train_epochs does not say how long a run is whose datasets come and go (start_step, end_step); set "
            "it to 0 and give max_train_steps"
        )
    return math.ceil(training.num_train_epochs * order.batches_per_epoch() / training.gradient_accumulation_steps)


def check_turns(job: TrainJob, samples: Sequence[Sample], num_steps: int) -> None:
    """JobError where the run has steps without a dataset, or none from which the adapter learns; warnings of what is idle."""
    regularised = {sample.dataset_id for sample in samples if sample.is_regularisation}
    present = {sample.dataset_id for sample in samples}
    mix = mix_of(job)
    stretches = cut_stretches({name: turns for name, turns in mix.turns.items() if name in present})
    within = [stretch for stretch in stretches if stretch.start_step < num_steps]
    ends = [*(stretch.start_step for stretch in within[1:]), num_steps]
    spans = {stretch: f"steps {stretch.start_step} to {end - 1}" for stretch, end in zip(within, ends, strict=True)}
    if empty := [span for stretch, span in spans.items() if not stretch.dataset_ids]:
        raise JobError(
            f"no dataset is drawn from in {', '.join(empty)} (counted from 0; the run has {num_steps}); "
            "change start_step or end_step of a dataset, or max_train_steps"
        )
    no_lesson = [span for stretch, span in spans.items() if regularised.issuperset(stretch.dataset_ids)]
    if len(no_lesson) == len(within):
        raise JobError(
            f"within the run's {num_steps} steps all datasets that are drawn from have is_regularisation_data, so the adapter "
            "would learn nothing; change start_step of the others, or max_train_steps"
        )
    for span in no_lesson:
        log.warning("%s draw from regularisation datasets alone: the adapter learns nothing new there, and forgets", span)
    for line in _idle(job, mix, within, num_steps):
        log.warning("%s", line)


def _idle(job: TrainJob, mix: Mix, within: Sequence[Stretch], num_steps: int) -> list[str]:
    """Settings of the turns that do nothing in this run."""
    together = [set(stretch.dataset_ids) for stretch in within if len(stretch.dataset_ids) > 1]
    lines = []
    for number, spec in enumerate(job.datasets):
        if spec.disabled or spec.dataset_type == "eval":
            continue
        if spec.start_step >= num_steps:
            lines.append(
                f"dataset {spec.id!r} is never drawn from: start_step is {spec.start_step}, and the run has {num_steps} steps"
            )
        elif spec.end_step > num_steps:
            lines.append(f"datasets.{number}.end_step {spec.end_step} has no effect: the run has {num_steps} steps")
        elif spec.probability != 1 and not any(spec.id in ids for ids in together):
            lines.append(f"datasets.{number}.probability has no effect: no other dataset is drawn from beside {spec.id!r}")
    if not mix.by_size and not together:
        lines.append("training.data_backend_sampling has no effect: never are two datasets drawn from at once")
    return lines
