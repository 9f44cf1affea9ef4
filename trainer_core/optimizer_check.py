"""Whether a job's optimiser will work here, found out before anything heavy is loaded.

What can be read from the job is read; whether a package works on this device is asked of the package itself, by a step on a
small parameter. That is more reliable than a list of devices, which would age with every release.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from .errors import JobError
from .optimizers import OPTIMIZERS, arguments, brings_its_course, make_optimizer
from .specs.optimizer import OptimizerSpec

_SMALLEST_PRODIGY_RATE = 0.1
_TRIAL_SHAPE = (512, 256)  # enough numbers for 8-bit states and for paged memory

# what optimizer_config may set, when it does nothing beside the other arguments, and the mend
_IDLE: tuple[tuple[str, Callable[[dict[str, Any], OptimizerSpec], bool], str], ...] = (
    ("decouple_lr", lambda used, spec: not used["weight_decay"], "without weight decay; set adam_weight_decay above 0"),
    ("weight_decay_by_lr", lambda used, spec: not used["weight_decay"], "without weight decay; set adam_weight_decay above 0"),
    ("schedulefree_c", lambda used, spec: not used["use_schedulefree"], "without use_schedulefree; set that to true"),
    ("d_limiter", lambda used, spec: used["use_speed"], "with use_speed, which has a limit of its own; take that out"),
    (
        "weight_lr_power",
        lambda used, spec: spec.lr_scheduler == "constant" or not spec.lr_warmup_steps,
        "where the learning rate never changes; give it lr_warmup_steps",
    ),
)


def check_optimizer(spec: OptimizerSpec, device: torch.device) -> None:
    """JobError when the optimiser's settings are at odds, its package is not there, or it does not work on the device."""
    _check_idle(spec)
    _check_course(spec)
    if OPTIMIZERS[spec.optimizer].package:
        _check_package(spec)
        _check_device(spec, device)


def _check_idle(spec: OptimizerSpec) -> None:
    used, usual = arguments(spec), OPTIMIZERS[spec.optimizer].options
    for name, when, why in _IDLE:
        if name in usual and used[name] != usual[name] and when(used, spec):
            raise JobError(f"optimizer_config: {name} has no effect {why}, or leave {name} out")


def _check_course(spec: OptimizerSpec) -> None:
    name, rate = spec.optimizer, spec.learning_rate
    if name == "prodigy" and rate < _SMALLEST_PRODIGY_RATE:
        raise JobError(f"prodigy finds its own rate and learning_rate {rate:g} scales it; set learning_rate to 1")
    if not brings_its_course(spec):
        return
    if spec.lr_scheduler not in ("constant", "constant_with_warmup"):
        raise JobError(
            f"{name} brings its own course: it averages its path, in place of a falling learning rate; set lr_scheduler to "
            f"'constant_with_warmup' instead of {spec.lr_scheduler!r}"
        )
    if spec.adam_beta1 == 0:
        raise JobError(f"{name} finds its average through adam_beta1, which is 0; set it to -1 or above 0")


def _check_package(spec: OptimizerSpec) -> None:
    choice = OPTIMIZERS[spec.optimizer]
    try:
        import_module(choice.module)
    except ImportError as error:
        raise JobError(
            f"optimizer {spec.optimizer} needs the package {choice.package}, which cannot be imported ({error}); get it with "
            f"'pip install {choice.package}' in the Python that trains, or choose adamw or adamw_bf16"
        ) from error


def _check_device(spec: OptimizerSpec, device: torch.device) -> None:
    name = spec.optimizer
    if name.endswith("-paged") and device.type == "cpu":
        raise JobError(f"{name} moves its states between a card and RAM, and there is no card here; choose {name[:-6]}")
    parameter = torch.nn.Parameter(torch.ones(_TRIAL_SHAPE, device=device))
    parameter.grad = torch.ones_like(parameter)
    try:
        make_optimizer(spec, [parameter], seed=0).step()
    except ValueError as error:
        raise JobError(f"{name} refuses its settings: {error}; correct optimizer_config") from error
    except RuntimeError as error:
        raise JobError(f"{name} does not work on {device}: {error}; choose adamw or adamw_bf16") from error
