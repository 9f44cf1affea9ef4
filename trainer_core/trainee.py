"""The trainee: the frozen base with the adapter on it, its optimiser, and how far they have come."""

import os
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch.nn import Parameter

from .adapter.build import add_lora
from .checkpoint import restore_latest
from .context import RunContext
from .ema import Ema
from .errors import JobError
from .flux.load import load_transformer
from .flux.recompute import recompute_blocks
from .flux.routing import TokenRouter
from .history import History
from .optim import make_optimizer
from .setup import Setup


@dataclass(frozen=True)
class Trainee:
    """What training changes, the routes that it takes, and what it has measured so far."""

    transformer: FluxTransformer2DModel
    parameters: dict[str, Parameter]
    optimizer: torch.optim.Optimizer
    router: TokenRouter
    ema: Ema | None
    history: History


def build_trainee(setup: Setup, context: RunContext) -> Trainee:
    """The frozen base with the adapter on it and the optimiser, as new or as the newest checkpoint left them."""
    training = setup.job.training
    context.events.phase("load", 0, 1)
    transformer = load_transformer(setup.files.transformer, setup.dtype, setup.device)
    parameters = add_lora(transformer, setup.job.lora, setup.modules, training.seed)
    if training.gradient_checkpointing:
        recompute_blocks(transformer, training.gradient_checkpointing_interval)
    optimizer = make_optimizer(setup.job.optimizer, parameters.values())
    ema = Ema(parameters, training.ema_decay, training.ema_update_interval) if training.use_ema else None
    history = restore_latest(context.run_dir.checkpoints_dir, parameters, optimizer, ema)
    if history.step > setup.num_steps:
        raise JobError(f"{history.step} steps are trained already, the job has {setup.num_steps}; give it at least as many")
    context.events.phase("load", 1, 1)
    context.events.emit("adapter", modules=len(setup.modules), parameters=setup.num_parameters)
    context.events.emit(
        "started", run_id=context.run_dir.run_id, pid=os.getpid(), resumed_from=history.step, steps=setup.num_steps
    )
    return Trainee(transformer, parameters, optimizer, TokenRouter(transformer, setup.spans), ema, history)
