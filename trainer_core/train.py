"""The pipeline: from a checked job to a LoRA file. `run` reads as the data flows, a line a stage.

Everything that a stage needs from an earlier one is a value in its arguments. A run that was interrupted goes on from its
newest checkpoint, and since everything random is a function of the step, it ends as if nothing had happened.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch.nn import Parameter

from .adapter.build import add_adapter
from .adapter.lora_file import SAVE_DTYPES, export_lora, lora_metadata
from .adapter.verify import verify_lora
from .checkpoint import restore_latest, save_checkpoint
from .context import RunContext
from .data.batches import BatchPlan
from .data.encode import Caches, Progress, encode_captions, encode_pictures
from .data.index import count_buckets
from .flux.load import load_transformer
from .flux.routing import TokenRouter
from .job_file import dump_job
from .objective import Objective
from .optim import learning_rate_at, make_clip, make_optimizer, set_learning_rate
from .run_dir import RunDir, write_atomically
from .setup import Setup, write_manifest
from .step import train_step
from .validation.pictures import draw_before_after, draw_loss_curve
from .validation.render import render_prompts


@dataclass(frozen=True)
class Trainee:
    """What training changes, and the routes that it takes. `losses` has one entry a step done, so its length is the step."""

    transformer: FluxTransformer2DModel
    parameters: dict[str, Parameter]
    optimizer: torch.optim.Optimizer
    router: TokenRouter
    losses: list[float]

    @property
    def step(self) -> int:
        return len(self.losses)


def run(setup: Setup, context: RunContext) -> dict[str, Any]:
    """Train to the end and return what result.json holds. StopRequested after a stop that was asked for and saved."""
    started = time.monotonic()
    last_step = setup.job.training.max_train_steps
    open_run(setup, context)
    caches = fill_caches(setup, context)
    trainee = build_trainee(setup, context)
    before = render_prompts(setup, trainee.transformer, caches, context, step=0)

    training_started = time.monotonic()
    train(setup, trainee, caches, context)
    train_seconds = time.monotonic() - training_started

    after = render_prompts(setup, trainee.transformer, caches, context, step=last_step)
    context.stop_if_wanted(last_step)
    lora_path, verified_keys = save_lora(setup, trainee.transformer, context)
    result = context.run_dir.finish(
        {
            "lora": lora_path,
            "steps": last_step,
            "train_seconds": round(train_seconds, 2),
            "total_seconds": round(time.monotonic() - started, 2),
            "verified_keys": verified_keys,
            **draw(setup, trainee, before, after, context.run_dir),
            "samples": after,
            "losses": trainee.losses,
        }
    )
    context.events.emit("done", step=last_step, lora=str(lora_path), seconds=result["total_seconds"])
    return result


def open_run(setup: Setup, context: RunContext) -> None:
    """The job and what follows from it, on disk before anything else."""
    write_atomically(context.run_dir.job_path, dump_job(setup.job).encode())
    write_manifest(setup, context.run_dir)
    buckets = count_buckets(setup.samples)
    context.events.emit("dataset", pictures=len(setup.samples), buckets=buckets)


def fill_caches(setup: Setup, context: RunContext) -> Caches:
    """Every picture and every caption encoded, on disk; the encoders are freed again on return."""

    def progress(phase: str) -> Progress:
        def report(done: int, total: int) -> None:
            context.events.phase(phase, done, total)
            context.stop_if_wanted(0)

        return report

    latents = encode_pictures(setup.samples, setup.files.vae, context.cache_dir, setup.device, progress("encode pictures"))
    captions = [sample.caption for sample in setup.samples]
    captions += [*setup.prompts, setup.job.validation.validation_negative_prompt, ""]
    texts = encode_captions(
        list(dict.fromkeys(captions)),
        setup.files,
        setup.flavour,
        context.cache_dir,
        setup.dtype,
        setup.device,
        progress("encode captions"),
    )
    return Caches(latents, texts)


def build_trainee(setup: Setup, context: RunContext) -> Trainee:
    """The frozen base with the adapter on it and the optimiser, as new or as the newest checkpoint left them."""
    context.events.phase("load", 0, 1)
    transformer = load_transformer(setup.files.transformer, setup.dtype, setup.device)
    parameters = add_adapter(transformer, setup.adapter, setup.job.training.seed)
    if setup.job.training.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    optimizer = make_optimizer(setup.job.optimizer, parameters.values())
    losses = restore_latest(context.run_dir.checkpoints_dir, parameters, optimizer)
    context.events.phase("load", 1, 1)
    context.events.emit("adapter", modules=len(setup.modules), parameters=setup.num_parameters)
    context.events.emit(
        "started",
        run_id=context.run_dir.run_id,
        pid=os.getpid(),
        resumed_from=len(losses),
        steps=setup.job.training.max_train_steps,
    )
    return Trainee(transformer, parameters, optimizer, TokenRouter(transformer, setup.spans), losses)


def train(setup: Setup, trainee: Trainee, caches: Caches, context: RunContext) -> None:
    """The loop, from where the trainee stands to the last step. StopRequested once a wanted stop is saved."""
    job, training = setup.job, setup.job.training
    last_step = training.max_train_steps
    objective, clip = Objective(job.flow, setup.dtype, training.seed), make_clip(job.optimizer)
    plan = BatchPlan(
        setup.samples,
        job.datasets,
        caches,
        batch_size=training.train_batch_size,
        caption_dropout=job.flow.caption_dropout_probability,
        seed=training.seed,
    )
    for step in range(trainee.step, last_step):
        if context.should_stop():
            save_state(trainee, training.checkpoints_total_limit, context)
            context.stop_if_wanted(step)
        began = time.monotonic()
        learning_rate = learning_rate_at(job.optimizer, step, last_step)
        set_learning_rate(trainee.optimizer, learning_rate)
        trainee.transformer.train()
        loss, norm = train_step(
            trainee.transformer,
            trainee.optimizer,
            plan,
            objective,
            trainee.router,
            clip,
            step=step,
            accumulation=training.gradient_accumulation_steps,
        )
        trainee.losses.append(loss)
        done = trainee.step
        context.events.emit(
            "step",
            step=done,
            steps=last_step,
            loss=loss,
            learning_rate=learning_rate,
            grad_norm=norm,
            seconds=round(time.monotonic() - began, 4),
        )
        if done == last_step or _is_due(done, training.checkpoint_step_interval):
            save_state(trainee, training.checkpoints_total_limit, context)
        if done < last_step and _is_due(done, job.validation.validation_step_interval):
            render_prompts(setup, trainee.transformer, caches, context, step=done)


def save_state(trainee: Trainee, keep: int, context: RunContext) -> None:
    """A checkpoint of the trainee as it stands."""
    path = save_checkpoint(context.run_dir.checkpoints_dir, trainee.parameters, trainee.optimizer, trainee.losses, keep=keep)
    context.events.emit("checkpoint", step=trainee.step, path=str(path))


def save_lora(setup: Setup, transformer: FluxTransformer2DModel, context: RunContext) -> tuple[Path, int]:
    """Export, read back, compare; the file and the number of its keys, all of which matched."""
    path, step = context.run_dir.lora_path(setup.job.name), setup.job.training.max_train_steps
    context.events.phase("save", 0, 1)
    metadata = lora_metadata(setup.job, setup.adapter, setup.flavour, context.run_dir.run_id, step)
    export_lora(path, transformer, setup.adapter, SAVE_DTYPES[setup.job.lora.lora_save_precision], metadata)
    verification = verify_lora(path, setup.shape, setup.adapter)
    context.events.emit("verified", path=str(path), matched=verification.matched, keys=verification.keys)
    assert verification.complete, f"the LoRA just written is wrong: {verification.problems}"
    context.events.phase("save", 1, 1)
    return path, verification.keys


def draw(setup: Setup, trainee: Trainee, before: list[Path], after: list[Path], run_dir: RunDir) -> dict[str, Any]:
    """The loss curve, and base beside LoRA where there are prompts; their paths for the result."""
    draw_loss_curve(run_dir.loss_curve_path, trainee.losses)
    if setup.prompts:
        draw_before_after(run_dir.before_after_path, list(setup.prompts), before, after)
    return {"before_after": run_dir.before_after_path if setup.prompts else None, "loss_curve": run_dir.loss_curve_path}


def _is_due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
