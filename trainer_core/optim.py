"""Clipping and the course of the learning rate. The course is a pure function of the step: nothing to save or restore."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Parameter

from .specs.optimizer import OptimizerSpec


def make_clip(spec: OptimizerSpec) -> Callable[[list[Parameter]], Tensor]:
    """Limits gradients in place and returns the norm that they had."""

    def clip(parameters: list[Parameter]) -> Tensor:
        if spec.grad_clip_method == "norm":
            return torch.nn.utils.clip_grad_norm_(parameters, spec.max_grad_norm)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        torch.nn.utils.clip_grad_value_(parameters, spec.max_grad_norm)
        return norm

    return clip


def learning_rate_at(spec: OptimizerSpec, step: int, num_steps: int) -> float:
    """The rate of optimiser step `step` (from 0) of `num_steps`: a linear warm-up, then the schedule's course to its end."""
    if step < spec.lr_warmup_steps and spec.lr_scheduler != "constant":
        return spec.learning_rate * (step + 1) / (spec.lr_warmup_steps + 1)
    progress = (step - spec.lr_warmup_steps) / max(1, num_steps - spec.lr_warmup_steps)
    height = _COURSES[spec.lr_scheduler](min(1.0, max(0.0, progress)), spec)
    return spec.lr_end + (spec.learning_rate - spec.lr_end) * height


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


# from progress in [0, 1] to height in [0, 1] between lr_end and the learning rate
_COURSES: dict[str, Callable[[float, OptimizerSpec], float]] = {
    "constant": lambda progress, spec: 1.0,
    "constant_with_warmup": lambda progress, spec: 1.0,
    "linear": lambda progress, spec: 1 - progress,
    "cosine": lambda progress, spec: 0.5 * (1 + math.cos(math.pi * progress)),
    "cosine_with_restarts": lambda progress, spec: 0.5 * (1 + math.cos(math.pi * (progress * spec.lr_num_cycles % 1.0))),
    "polynomial": lambda progress, spec: (1 - progress) ** spec.lr_power,
    "sine": lambda progress, spec: abs(math.sin(math.pi * progress * spec.lr_num_cycles)),
}
