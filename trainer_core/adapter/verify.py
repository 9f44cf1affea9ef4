"""After each save: is the file what ComfyUI will load, all of it, at the strength that was trained?

The file is read back from disk and must hold the planned tensors for each adapted layer. ComfyUI finds a layer by its name
(`flux/names.py` is that list) and adds strength * alpha / rank times the change to its weight, so each key must name a known
layer, its size must be the planned one, alpha must be the one trained with, and the numbers must be finite and not all zero.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..flux.files import read_tensors
from ..flux.load import FluxShape
from ..flux.names import linear_names
from .factors import change_norm
from .lora_file import ALPHA, PART_SUFFIXES, FileModule, key_stem, read_modules
from .plan import AdapterPlan

IDLE = "the adapter changes nothing: in each layer a factor is zero"


@dataclass(frozen=True)
class Verification:
    """`matched` of the `keys` that must be there are as ComfyUI wants them; `strengths` are alpha / rank as the file has them;
    `problems` says what is wrong."""

    keys: int
    matched: int
    strengths: tuple[float, ...]
    problems: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return self.matched == self.keys and not self.problems


def verify_lora(path: Path, shape: FluxShape, plan: AdapterPlan) -> Verification:
    """Compare the file with ComfyUI's names for the base of this shape and with the plan that was trained."""
    tensors = read_tensors(path)
    known = {key_stem(plan.kind, name.diffusers) for name in linear_names(shape.num_double, shape.num_single, shape.guidance)}
    expected: dict[str, tuple[int, ...] | float] = {}
    for module in plan.exported:
        stem = key_stem(plan.kind, module.name)
        expected[stem + ALPHA] = module.alpha
        expected |= {stem + PART_SUFFIXES[plan.kind][part]: size for part, size in module.shapes.items()}
    problems = {key: problem for key, tensor in tensors.items() if (problem := _problem(key, tensor, known, expected))}
    problems |= {key: f"{key}: the file lacks it" for key in sorted(expected.keys() - tensors.keys())}
    matched = len(expected.keys() - problems.keys())
    if not problems and changes_nothing(tensors):
        problems[""] = IDLE
    strengths = sorted({module.strength for module in plan.exported}) if not problems else []
    return Verification(len(expected), matched, tuple(strengths), tuple(problems.values()))


def changes_nothing(tensors: dict[str, Tensor]) -> bool:
    """Whether an adapter of these tensors, by the keys of its file, leaves every layer as it is."""
    return not any(_changes_something(module) for module in read_modules(tensors))


def _problem(key: str, tensor: Tensor, known: set[str], expected: dict[str, tuple[int, ...] | float]) -> str | None:
    """What is wrong with one tensor, or None."""
    suffixes = {ALPHA, *(suffix for parts in PART_SUFFIXES.values() for suffix in parts.values())}
    stems = {key.removesuffix(suffix) for suffix in suffixes if key.endswith(suffix)}
    if not stems & known:
        return f"{key}: ComfyUI knows no such layer"
    if key not in expected:
        return f"{key}: this adapter was not trained with it"
    if not bool(torch.isfinite(tensor).all()):
        return f"{key}: holds numbers that are not finite"
    planned = expected[key]
    if isinstance(planned, tuple) and tuple(tensor.shape) != planned:
        return f"{key}: has shape {tuple(tensor.shape)}, the layer needs {planned}"
    if isinstance(planned, float) and not math.isclose(tensor.item(), planned, rel_tol=1e-6):
        return f"{key}: is {tensor.item()}, trained was {planned}"
    return None


def _changes_something(module: FileModule) -> bool:
    """For a LoHa, whose change is dear to make, it is enough that no factor is zero."""
    if module.kind == "loha":
        return all(bool(part.any()) for part in module.parts.values())
    return change_norm(module.kind, module.parts, 1.0) > 0
