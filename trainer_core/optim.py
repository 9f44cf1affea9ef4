"""Optimisers and the course of the learning rate. The schedule is a pure function of the step: nothing to save or restore."""

import math
from collections.abc import Callable, Iterable

import torch
from torch.nn import Parameter

from .job import OptimizerSpec


def make_optimizer(spec: OptimizerSpec, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """The optimiser by its name."""
    return _OPTIMIZERS[spec.optimizer](spec, list(parameters))


def learning_rate_at(spec: OptimizerSpec, step: int, num_steps: int) -> float:
    """The rate of optimiser step `step` (from 0) of `num_steps`: a linear warm-up, then the schedule's course to its end."""
    if step < spec.lr_warmup_steps and spec.lr_scheduler != "constant":
        return spec.learning_rate * (step + 1) / (spec.lr_warmup_steps + 1)
    progress = (step - spec.lr_warmup_steps) / max(1, num_steps - spec.lr_warmup_steps)
    return spec.learning_rate * _COURSES[spec.lr_scheduler](progress)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _adamw(spec: OptimizerSpec, parameters: list[Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters, lr=spec.learning_rate, betas=(spec.adam_beta1, spec.adam_beta2), weight_decay=spec.adam_weight_decay
    )


_OPTIMIZERS: dict[str, Callable[[OptimizerSpec, list[Parameter]], torch.optim.Optimizer]] = {"adamw": _adamw}

_COURSES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "constant_with_warmup": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}
