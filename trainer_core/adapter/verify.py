"""After each save: is the file what ComfyUI will load, all of it, at the strength that was trained?

The file is read back from disk and must hold three tensors for each adapted layer. ComfyUI finds a module by its name
(`flux/names.py` is that list) and adds strength * alpha / rank * B A to its weight, so each key must name a known layer, its
sizes must fit the layer's, alpha must be the one trained with, and the numbers must be finite and not all zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..flux.files import read_tensors
from ..flux.load import FluxShape, empty_transformer
from ..flux.names import linear_names
from .lora_file import ALPHA, DOWN, PREFIX, UP


@dataclass(frozen=True)
class Verification:
    """`matched` of the `keys` that must be there are as ComfyUI wants them; `problems` says what is wrong."""

    keys: int
    matched: int
    problems: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return self.matched == self.keys and not self.problems


def verify_lora(path: Path, shape: FluxShape, modules: Sequence[str], alpha: float) -> Verification:
    """Compare the file with the base of this shape, the layers that were adapted and the alpha that was trained."""
    tensors = read_tensors(path)
    known = {name.diffusers for name in linear_names(shape.num_double, shape.num_single, shape.guidance)}
    sizes = {name: module.weight.shape for name, module in empty_transformer(shape).named_modules() if name in known}
    expected = {PREFIX + module + part for module in modules for part in (DOWN, UP, ALPHA)}
    problems = {key: problem for key, tensor in tensors.items() if (problem := _problem(key, tensor, sizes, alpha))}
    problems |= {key: f"{key}: the file lacks it" for key in sorted(expected - tensors.keys())}
    matched = len(expected - problems.keys())
    if not any(bool(tensor.any()) for key, tensor in tensors.items() if key.endswith(UP)):
        problems[UP] = "all lora_B are zero: the LoRA changes nothing"
    return Verification(len(expected), matched, tuple(problems.values()))


def _problem(key: str, tensor: torch.Tensor, sizes: dict[str, torch.Size], alpha: float) -> str | None:
    """What is wrong with one tensor, or None."""
    part = next((part for part in (DOWN, UP, ALPHA) if key.endswith(part)), None)
    module = key.removeprefix(PREFIX).removesuffix(part or "")
    if part is None or not key.startswith(PREFIX) or module not in sizes:
        return f"{key}: ComfyUI knows no such layer"
    out_features, in_features = sizes[module]
    if not bool(torch.isfinite(tensor).all()):
        return f"{key}: holds numbers that are not finite"
    if part == ALPHA and tensor.item() != alpha:
        return f"{key}: is {tensor.item()}, trained was {alpha}"
    if (part == DOWN and tensor.shape[1] != in_features) or (part == UP and tensor.shape[0] != out_features):
        return f"{key}: has shape {tuple(tensor.shape)}, the layer is {out_features} x {in_features}"
    return None
