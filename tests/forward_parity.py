"""What an adapter file does in pico's forward pass: each change of a weight, read by the formulas alone, put into the weights.

Two files are of one mind where the predictions with them agree. Of the code that is tested only pico's loading is used.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from foreign_adapters import change, diffusers_changes, sizes
from safetensors.torch import load_file
from torch import Tensor

from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import load_transformer, read_shape
from trainer_core.flux.predict import predict_velocity

SHAPE = read_shape(PICO_FILES.transformer)


def deltas(path: Path) -> dict[str, Tensor]:
    """What the file adds to each weight, by its own keys and the formulas alone."""
    layers: dict[str, dict[str, Tensor]] = {}
    suffixes = {".lora_A.weight": "down", ".lora_B.weight": "up", ".lora_down.weight": "down", ".lora_up.weight": "up"}
    for key, tensor in load_file(path).items():
        end = next((end for end in suffixes if key.endswith(end)), "." + key.rpartition(".")[2])
        layers.setdefault(key.removesuffix(end), {})[suffixes.get(end, end[1:])] = tensor.float()
    original = next(iter(layers)).startswith(("lora_unet_", "diffusion_model."))
    stems = ("lora_unet_{flat}", "diffusion_model.{}") if original else ("transformer.{}", "lycoris_{flat}")
    named = {stem.format(name, flat=name.replace(".", "_")): name for name in sizes(SHAPE, original) for stem in stems}
    found = {named[layer]: change(parts) for layer, parts in layers.items()}
    if not original:
        return found
    zeros = {name: torch.zeros(size) for name, size in sizes(SHAPE, True).items()}
    return {name: delta for name, delta in diffusers_changes(zeros | found, SHAPE).items() if delta.any()}


def forward(changes: Mapping[str, Tensor]) -> Tensor:
    """Pico's prediction with these changes in its weights."""
    transformer = load_transformer(PICO_FILES.transformer, torch.float32, torch.device("cpu"))
    for name, delta in changes.items():
        transformer.get_submodule(name).weight.data += delta
    random = torch.Generator().manual_seed(0)
    latent, text = (torch.randn(shape, generator=random) for shape in ((1, 16, 8, 8), (1, 8, SHAPE.t5_width)))
    pooled = torch.randn(1, SHAPE.clip_width, generator=random)
    with torch.no_grad():
        return predict_velocity(transformer, latent, torch.tensor([0.7]), text, pooled, torch.tensor([2.5]))


def difference(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()
