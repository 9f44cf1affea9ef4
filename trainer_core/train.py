"""The pipeline: from a checked job to a LoRA file. `run` reads as the data flows, a line a stage.

Everything that a stage needs from an earlier one is a value in its arguments. A run that was interrupted goes on from its
newest checkpoint, and since everything random is a function of the step, it ends as if nothing had happened.

Where several processes train together, all go through these lines; they meet where a wish is heard and gradients are added up
(`processes.py`), and the first alone writes.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .adapter.dropout import find_dropouts
from .asked import ready_asked
from .caching import fill_caches
from .commands import CONTINUE, PAUSE, SAMPLE, SAVE
from .context import RunContext
from .course import mix_of
from .data.batches import BatchPlan
from .data.encode import Caches
from .data.images import load_rgb
from .data.index import count_buckets
from .data.loader import Loader
from .data.report import group_reasons
from .data.shares import Share
from .flux.attention import attending
from .flux.compiling import as_written
from .flux.modulation import look_ahead, steps_together
from .guard import ENCODING, EVALUATING, LOADING, PICTURING, memory_watched
from .history import Evaluation, History, PictureScore
from .host_memory import own_bytes
from .job import TrainJob
from .job_file import dump_job
from .modelspec import thumbnail_of
from .objective import Objective
from .optim import learning_rate_at, make_clip, set_learning_rate
from .processes import ProcessLost
from .run_dir import RunDir
from .saving import save_loras, save_state
from .setup import Setup, write_manifest
from .step import StepRecord, Update, conditions_of, train_step
from .trainee import Trainee, build_trainee
from .validation.evaluate import evaluate, mean_loss, overfitting
from .validation.pictures import draw_before_after, draw_loss_curve
from .validation.render import is_whole, render_shots
from .writing import write_atomically

log = logging.getLogger(__name__)

BATCHES_AHEAD = 2  # read while a step runs, beside those of the next step
PAUSE_SECONDS = 0.2  # between two looks for a command while paused
MOST_REASONS = 10
TOLERANCE = 1e-9  # of a number of epochs, which is a sum of fractions


def run(setup: Setup, context: RunContext) -> dict[str, Any]:
    """Train to the end and return what result.json holds. StopRequested after a stop that was asked for and saved."""
    started = time.monotonic()
    open_run(setup, context)
    with memory_watched(setup.job, ENCODING):
        caches = fill_caches(setup, context)
    with memory_watched(setup.job, LOADING):
        trainee = build_trainee(setup, context)
    with memory_watched(setup.job, PICTURING):
        before = make_pictures(setup, trainee, caches, context, step=0)

    training_started = time.monotonic()
    mechanism = setup.job.base.attention_mechanism
    with trainee.assisted(setup.job.base.assistant_lora_strength), attending(mechanism, training=True):
        train(setup, trainee, caches, context)
    train_seconds = time.monotonic() - training_started

    with memory_watched(setup.job, PICTURING):
        after = make_pictures(setup, trainee, caches, context, step=setup.num_steps)
    if context.all_stop():
        context.leave()
    if not context.group.is_first:
        return {}
    loras = save_loras(setup, trainee, context, after)
    result = context.run_dir.finish(
        {
            **loras,
            "steps": setup.num_steps,
            "train_seconds": round(train_seconds, 2),
            "total_seconds": round(time.monotonic() - started, 2),
            **draw(setup, trainee, before, after, context.run_dir),
            "samples": after,
            "losses": trainee.history.losses,
            "evaluations": trainee.history.to_json()["evaluations"],
            "routes": trainee.history.route_report(),
            "scores": [asdict(score) for score in trainee.history.scores],
        }
    )
    context.events.emit("done", step=setup.num_steps, lora=result["lora"], seconds=result["total_seconds"])
    return result


def open_run(setup: Setup, context: RunContext) -> None:
    """The job and what follows from it, on disk before anything else; by the first process."""
    if not context.group.is_first:
        return
    write_manifest(setup, context.run_dir, processes=context.group.count)  # first: of the two it is the one that is believed
    write_atomically(context.run_dir.job_path, dump_job(setup.job).encode())
    buckets = count_buckets(setup.samples)
    reasons = list(group_reasons(setup.rejected))[:MOST_REASONS]
    context.events.emit("dataset", pictures=len(setup.samples), buckets=buckets, rejected=len(setup.rejected), reasons=reasons)


def train(setup: Setup, trainee: Trainee, caches: Caches, context: RunContext) -> None:
    """The loop, from where the trainee stands to the last step. StopRequested once a wanted stop is saved."""
    job, training, history, group = setup.job, setup.job.training, trainee.history, context.group
    accumulation, first = training.gradient_accumulation_steps, history.step
    objective, update = Objective(setup.flow, setup.dtype, training.seed), Update(trainee.optimizer, make_clip(job.optimizer))
    dropouts = find_dropouts(trainee.transformer)
    plan = BatchPlan(
        setup.samples,
        caches,
        batch_size=training.train_batch_size,
        caption_dropout=job.flow.caption_dropout_probability,
        seed=training.seed,
        mix=mix_of(job),
        share=Share(group.rank, group.count, group.in_step),
    )
    evaluate_if_due(setup, trainee, caches, context)
    picture_if_due(setup, trainee, caches, context, plan)  # where a kill came between a checkpoint and its pictures
    ahead = 1 + math.ceil(BATCHES_AHEAD / accumulation)
    with saved_if_lost(setup, trainee, context), Loader(plan.portion, range(first, setup.num_steps), ahead) as loader:
        for step in range(first, setup.num_steps):
            obey(setup, trainee, caches, context)
            began, waited = time.monotonic(), loader.seconds_waited
            learning_rate = learning_rate_at(job.optimizer, step, setup.num_steps)
            set_learning_rate(trainee.optimizer, learning_rate)
            if not trainee.transformer.training:  # pictures leave it otherwise; the switch itself walks through every module
                trainee.transformer.train()
            is_compiling = setup.compiles and step == first
            with memory_watched(job, f"step {step + 1}"), told_of_compiling(context) if is_compiling else nullcontext():
                coming = steps_together(step, training.train_batch_size * accumulation)
                if setup.modulation_on_host and step in (coming.start, first):
                    look_ahead(trainee.transformer, conditions_of(loader.take, objective, coming), "training")
                record = train_step(
                    trainee.transformer,
                    update,
                    loader.take(step),
                    objective,
                    trainee.router,
                    dropouts,
                    step=step,
                    group=group,
                )
            if trainee.ema is not None:
                trainee.ema.update(step + 1)
            seconds = time.monotonic() - began
            history.add(record, seconds, loader.seconds_waited - waited)
            report(setup, history, record, learning_rate, seconds, context)
            is_best = evaluate_if_due(setup, trainee, caches, context)
            if is_best or step + 1 == setup.num_steps or _is_due(step + 1, training.checkpoint_step_interval):
                save_state(setup, trainee, context)
            picture_if_due(setup, trainee, caches, context, plan)


@contextmanager
def told_of_compiling(context: RunContext) -> Iterator[None]:
    """Around the first step of a run whose blocks are compiled, which waits for that."""
    began = time.monotonic()
    context.events.phase("compile", 0, 1)
    yield
    context.events.phase("compile", 1, 1)
    log.info("the first step took %.0f s, with the blocks compiled in it", time.monotonic() - began)


@contextmanager
def saved_if_lost(setup: Setup, trainee: Trainee, context: RunContext) -> Iterator[None]:
    """Where another process is lost in here, what all had until then is saved before this one ends, too."""
    try:
        yield
    except ProcessLost:
        save_state(setup, trainee, context)
        raise


def wants_pictures(job: TrainJob, plan: BatchPlan, steps: int) -> bool:
    """Whether pictures are due once so many steps are done: by their number, or because an epoch has ended with the last."""
    interval, accumulation = job.validation.validation_epoch_interval, job.training.gradient_accumulation_steps
    if not interval:
        return _is_due(steps, job.validation.validation_step_interval)
    before, now = (int(plan.order.epochs(count * accumulation) + TOLERANCE) for count in (steps - 1, steps))
    return _is_due(steps, job.validation.validation_step_interval) or (now > before and _is_due(now, interval))


def report(
    setup: Setup, history: History, record: StepRecord, learning_rate: float, seconds: float, context: RunContext
) -> None:
    """The step as an event, and the interval that ends with it as another."""
    context.events.emit(
        "step",
        step=history.step,
        steps=setup.num_steps,
        loss=record.loss,
        learning_rate=learning_rate,
        grad_norm=record.grad_norm,
        seconds=round(seconds, 4),
    )
    is_due = _is_due(history.step, setup.job.training.log_interval)
    if is_due or history.step == setup.num_steps:
        memory = memory_gib(setup.device)
        context.events.emit("metrics", **history.report(anew=is_due), learning_rate=learning_rate, memory_gib=memory)


def evaluate_if_due(setup: Setup, trainee: Trainee, caches: Caches, context: RunContext) -> bool:
    """Measure the held-out loss at the start, at each interval and at the end; whether it is the best so far. A wish to stop
    leaves it for the next start."""
    history, interval = trainee.history, setup.job.validation.eval_steps_interval
    is_end = history.step in (0, setup.num_steps)
    is_known = any(evaluation.step == history.step for evaluation in history.evaluations)
    if not interval or is_known or not (is_end or _is_due(history.step, interval)):
        return False
    with memory_watched(setup.job, EVALUATING), trainee.as_used(), as_written(compiled=setup.compiles):
        progress, should_stop = context.progress("evaluate"), context.should_stop
        by_dataset = evaluate(setup, trainee.transformer, caches, progress, should_stop, context.group)
    if by_dataset is None:
        return False
    evaluation = Evaluation(history.step, mean_loss(by_dataset), by_dataset)
    history.evaluations.append(evaluation)
    is_best = history.best is evaluation
    context.events.emit("evaluation", step=history.step, loss=evaluation.loss, by_dataset=by_dataset, best=is_best)
    if notice := overfitting(history):
        log.warning("%s", notice)
    return is_best


def obey(setup: Setup, trainee: Trainee, caches: Caches, context: RunContext) -> None:
    """Do what was asked for since the last step; StopRequested, all saved, if that is to stop."""
    paused, step = False, trainee.history.step
    if context.group.is_first:
        context.run_dir.check_there()
    while True:
        stops, command = context.agreed()
        if stops:
            save_state(setup, trainee, context)
            context.leave()
        if command is None:
            if not paused:
                return
            time.sleep(PAUSE_SECONDS)
        elif command.name == SAVE:
            save_state(setup, trainee, context)
        elif command.name == SAMPLE:
            picture(setup, trainee, caches, context, command.prompt)
        elif command.name == PAUSE and not paused:
            save_state(setup, trainee, context)
            context.events.emit("paused", step=step)
            paused = True
        elif command.name == CONTINUE and paused:
            context.events.emit("continued", step=step)
            paused = False


def picture(setup: Setup, trainee: Trainee, caches: Caches, context: RunContext, prompt: str) -> None:
    """The job's own prompts as the adapter is now, or, if there is one, the prompt that somebody typed in."""
    if not prompt:
        make_pictures(setup, trainee, caches, context, step=trainee.history.step)
        return
    asked = ready_asked(setup, caches, context, prompt)
    if asked is not None:
        make_pictures(asked[0], trainee, asked[1], context, step=trainee.history.step)


def picture_if_due(setup: Setup, trainee: Trainee, caches: Caches, context: RunContext, plan: BatchPlan) -> None:
    """The pictures of this step, where the job wants some before the end, and the thumbnail of the checkpoints after it. The
    history holds that, since a picture's file may be gone when a resumed run saves."""
    step = trainee.history.step
    if not (0 < step < setup.num_steps and wants_pictures(setup.job, plan, step)):
        return
    paths = make_pictures(setup, trainee, caches, context, step=step)
    if paths and context.group.is_first and is_whole(paths[0]):
        trainee.history.thumbnail = thumbnail_of(paths[0])


def make_pictures(setup: Setup, trainee: Trainee, caches: Caches, context: RunContext, *, step: int) -> list[Path]:
    """A picture of each prompt, by the adapter, its running average, or both; at step 0 by the base alone."""
    wanted, paths = setup.job.training.ema_validation, []
    base, eager = setup.job.base, as_written(compiled=setup.compiles)
    with trainee.assisted(base.assistant_lora_inference_strength), attending(base.attention_mechanism, training=False), eager:
        if trainee.ema is None or step == 0 or wanted != "ema_only":
            with trainee.as_used():
                paths += render_shots(setup, trainee.transformer, caches, context, step=step)
        if trainee.ema is not None and step and wanted != "none":
            with trainee.as_used(ema=True):
                paths += render_shots(setup, trainee.transformer, caches, context, step=step, ema=True)
    is_scored = setup.job.validation.evaluation_type == "clip" and setup.shots and context.group.is_first
    if is_scored and not context.should_stop():
        score_pictures(setup, paths, trainee.history, context, step=step)
    return paths


def score_pictures(setup: Setup, paths: list[Path], history: History, context: RunContext, *, step: int) -> None:
    """What CLIP says of these pictures, of those that it has not judged yet."""
    named = {f"{path.parent.name}/{path.stem}": path for path in paths}
    known = {score.picture for score in history.scores}
    missing = {name: path for name, path in named.items() if name not in known}
    if not missing:
        return
    from .validation.clip_score import ClipJudge

    name = setup.job.validation.pretrained_evaluation_model_name_or_path.strip()
    judge = ClipJudge(name, setup.device, setup.samples, context.cache_dir, allow_download=setup.job.base.allow_download)
    prompts = {shot.name: shot.prompt for shot in setup.shots}
    for picture, path in missing.items():
        if context.should_stop():
            return
        prompt = prompts[path.stem]
        [score] = judge.judge([load_rgb(path)], [prompt])
        history.scores.append(PictureScore(step, picture, prompt, score.clip_score, score.likeness))
        context.events.emit("score", **asdict(history.scores[-1]))


def draw(setup: Setup, trainee: Trainee, before: list[Path], after: list[Path], run_dir: RunDir) -> dict[str, Any]:
    """The loss curve, and base beside LoRA where there are prompts; their paths for the result."""
    draw_loss_curve(run_dir.loss_curve_path, trainee.history.losses)
    if setup.shots:
        draw_before_after(run_dir.before_after_path, [shot.prompt for shot in setup.shots], before, after[: len(before)])
    return {"before_after": run_dir.before_after_path if setup.shots else None, "loss_curve": run_dir.loss_curve_path}


def memory_gib(device: torch.device) -> dict[str, float]:
    """The most memory used on the card so far, where there is one, and the RAM that is this process's own, as in the plan."""
    held = {"ram": round(own_bytes() / 2**30, 3)}
    if device.type == "cuda":
        held["card"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    return held


def _is_due(step: int, interval: int) -> bool:
    return interval > 0 and step > 0 and step % interval == 0
