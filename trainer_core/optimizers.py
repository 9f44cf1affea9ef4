"""The optimisers: one literal table from a name to its class, its defaults and the arguments that it takes.

What a job leaves open is filled in from the table, never from a package's own defaults, so a run does not change with a
package's version, and `effective` can say what is used without importing anything. A package is imported only by the job that
names it. Defaults are those that SimpleTuner trains FLUX with; an argument's type is that of its default.

Some arguments of the packages are left out, since here they would do nothing: what concerns bfloat16 weights (the adapter is
float32), several parameter groups (there is one), or a warm-up of their own (`lr_warmup_steps` is ours). optimi's triton
kernels are off: they want a compiler on the user's machine, and StableAdamW's sums in no fixed order, so runs would differ.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch.nn import Parameter

from .errors import JobError
from .specs.optimizer import OptimizerSpec

Value = float | int | bool


@dataclass(frozen=True)
class Choice:
    """A row. `package` is what pip installs, '' for what is always here; `options` may be set by optimizer_config.

    `seeded`: it draws random numbers. `averages`: schedule-free, it trains at one place and means another, the average of
    its path; it then has train() and eval() modes.
    """

    package: str
    module: str
    class_name: str
    betas: tuple[float, ...]
    options: dict[str, Value]
    fixed: dict[str, Value] = field(default_factory=dict)
    seeded: bool = False
    averages: bool = False


def _bnb(class_name: str, betas: tuple[float, ...], **options: Value) -> Choice:
    return Choice("bitsandbytes", "bitsandbytes.optim", class_name, betas, options | {"min_8bit_size": 4096})


def _optimi(class_name: str, **options: Value) -> Choice:
    return Choice("torch-optimi", "optimi", class_name, (0.9, 0.99), options | {"decouple_lr": False}, {"triton": False})


_ADAM, _LION = (0.9, 0.999), (0.9, 0.99)
OPTIMIZERS: dict[str, Choice] = {
    "adamw": Choice("", "torch.optim", "AdamW", _ADAM, {"weight_decay": 1e-2, "eps": 1e-8, "amsgrad": False}),
    "adamw_bf16": Choice("", ".adamw_bf16", "AdamWBF16", _ADAM, {"weight_decay": 1e-2, "eps": 1e-6}, seeded=True),
    "optimi-adamw": _optimi("AdamW", weight_decay=0.0, eps=1e-6),
    "optimi-stableadamw": _optimi("StableAdamW", weight_decay=1e-2, eps=1e-6),
    "optimi-lion": _optimi("Lion", weight_decay=0.0),
    "bnb-adamw8bit": _bnb("AdamW8bit", _ADAM, weight_decay=1e-2, eps=1e-6),
    "bnb-adamw8bit-paged": _bnb("PagedAdamW8bit", _ADAM, weight_decay=1e-2, eps=1e-6),
    "bnb-lion8bit": _bnb("Lion8bit", _LION, weight_decay=0.0),
    "bnb-lion8bit-paged": _bnb("PagedLion8bit", _LION, weight_decay=0.0),
    "bnb-ademamix8bit": _bnb(
        "AdEMAMix8bit", (0.9, 0.999, 0.9999), weight_decay=1e-2, eps=1e-8, alpha=5.0, t_alpha=0, t_beta3=0
    ),
    "prodigy": Choice(
        "prodigy-plus-schedule-free",
        "prodigyplus",
        "ProdigyPlusScheduleFree",
        _LION,
        {
            "weight_decay": 0.0,
            "weight_decay_by_lr": True,
            "eps": 1e-8,
            "d0": 1e-6,
            "d_coef": 1.0,
            "d_limiter": True,
            "prodigy_steps": 0,
            "schedulefree_c": 0.0,
            "factored": True,
            "use_bias_correction": False,
            "use_stableadamw": True,
            "use_schedulefree": True,
            "use_speed": False,
            "use_cautious": False,
            "use_adopt": False,
            "use_orthograd": False,
        },
        {"split_groups": False},
        averages=True,
    ),
    "adamw_schedulefree": Choice(
        "schedulefree",
        "schedulefree",
        "AdamWScheduleFree",
        _ADAM,
        {"weight_decay": 1e-2, "eps": 1e-8, "r": 0.0, "weight_lr_power": 2.0},
        averages=True,
    ),
}


def arguments(spec: OptimizerSpec) -> dict[str, Any]:
    """Every argument that the optimiser is made with, but for parameters, learning rate and seed."""
    choice = OPTIMIZERS[spec.optimizer]
    given = parse_config(spec.optimizer_config, choice.options, spec.optimizer)
    if spec.adam_weight_decay >= 0:
        if "weight_decay" in given:
            raise JobError(
                f"optimizer_config sets weight_decay={given['weight_decay']} and adam_weight_decay is "
                f"{spec.adam_weight_decay}; give one of them"
            )
        given["weight_decay"] = spec.adam_weight_decay
    wanted = (spec.adam_beta1, spec.adam_beta2, *choice.betas[2:])
    betas = tuple(usual if wish < 0 else wish for wish, usual in zip(wanted, choice.betas, strict=True))
    return {"betas": betas} | choice.options | given | choice.fixed


def parse_config(text: str, options: dict[str, Value], name: str) -> dict[str, Value]:
    """'eps=1e-6,d_coef=0.5' as values of the options' own types."""
    given: dict[str, Value] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, word = (word.strip() for word in part.partition("="))
        if not equals:
            raise JobError(f"optimizer_config has {part!r}; write key=value,key=value")
        if key not in options:
            raise JobError(f"optimizer_config: {name} takes no {key!r} here; it takes {', '.join(sorted(options))}")
        if key in given:
            raise JobError(f"optimizer_config sets {key} twice; give it once")
        given[key] = _parse(key, word, type(options[key]))
    return given


def _parse(key: str, word: str, kind: type) -> Value:
    """The word as a bool, or as a finite number of that kind that is not negative."""
    if kind is bool:
        if word.lower() not in ("true", "false"):
            raise JobError(f"optimizer_config: {key} is {word!r}; it is true or false")
        return word.lower() == "true"
    try:
        value = kind(word)
    except ValueError:
        raise JobError(f"optimizer_config: {key} is {word!r}; it is {_KINDS[kind]}") from None
    if not math.isfinite(value) or value < 0:
        raise JobError(f"optimizer_config: {key} is {word!r}; it is {_KINDS[kind]}, 0 or above")
    return value


_KINDS = {int: "a whole number", float: "a number such as 0.5 or 1e-6"}


def make_optimizer(spec: OptimizerSpec, parameters: Iterable[Parameter], seed: int) -> torch.optim.Optimizer:
    """The optimiser, ready for its first step."""
    choice = OPTIMIZERS[spec.optimizer]
    settings = arguments(spec) | ({"seed": seed} if choice.seeded else {})
    make = getattr(import_module(choice.module, __package__), choice.class_name)
    optimizer = make(list(parameters), lr=spec.learning_rate, **settings)
    if choice.averages:
        optimizer.train()
    return optimizer


def brings_its_course(spec: OptimizerSpec) -> bool:
    """Whether the optimiser averages its path, which stands in for a learning rate that falls."""
    return OPTIMIZERS[spec.optimizer].averages and arguments(spec).get("use_schedulefree", True)


@contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within it, the weights are those to look at and to save: the average, for a schedule-free optimiser.

    Afterwards they are bit for bit what they were, which the optimiser's own way back, an interpolation, does not give.
    """
    if "train_mode" not in optimizer.defaults:
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for parameter, tensor in zip(parameters, trained, strict=True):
                parameter.copy_(tensor)


def effective(spec: OptimizerSpec) -> dict[str, Any]:
    """What is really used, for the manifest."""
    choice = OPTIMIZERS[spec.optimizer]
    return {
        "name": spec.optimizer,
        "class": f"{choice.module}.{choice.class_name}".lstrip("."),
        "learning_rate": spec.learning_rate,
        "arguments": arguments(spec),
    }
