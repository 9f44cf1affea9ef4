"""Small random adapter files in every naming and kind, and the change of weight that each must mean, worked out plainly."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer_core.flux.load import FluxShape, empty_transformer
from trainer_core.flux.names import linear_names, norm_names, places, to_original

Tensors = dict[str, Tensor]


def to_diffusers(original: dict[str, Tensor], num_double: int, num_single: int, guidance: bool) -> dict[str, Tensor]:
    """The original's tensors cut and renamed, as the loader reads them one at a time."""
    found = places(num_double, num_single, guidance, original["img_in.weight"].shape[0])
    tensors = {}
    for name, place in found.items():
        tensor = original[place.original][slice(*place.rows) if place.rows else slice(None)]
        tensors[name] = torch.cat(tensor.chunk(2)[::-1]) if place.swapped_halves else tensor
    return tensors


@dataclass(frozen=True)
class Dialect:
    """`stem` makes a layer's name; `original` says whose names it takes."""

    stem: str
    original: bool
    down: str = ".lora_down.weight"
    up: str = ".lora_up.weight"
    comfyui: bool = True  # ComfyUI 0.3.64 reads it

    def name(self, layer: str) -> str:
        return self.stem.format(layer, flat=layer.replace(".", "_"))


BOTH = ("weight", "bias")
PEFT = (".lora_A.weight", ".lora_B.weight")
DIALECTS = {
    "diffusers": Dialect("transformer.{}", False, *PEFT),
    "kohya": Dialect("lora_unet_{flat}", True),
    "bfl": Dialect("diffusion_model.{}", True, *PEFT),
    "onetrainer": Dialect("lora_transformer_{flat}", False),
    "lycoris": Dialect("lycoris_{flat}", False),
    "lora.up": Dialect("transformer.{}", False, ".lora.down.weight", ".lora.up.weight"),
    "_lora.up": Dialect("transformer.{}", False, "_lora.down.weight", "_lora.up.weight"),
    "lora_linear_layer": Dialect("transformer.{}", False, ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    "without .weight": Dialect("diffusion_model.{}", True, ".lora_A", ".lora_B"),
    "default": Dialect("transformer.{}", False, ".lora_A.default.weight", ".lora_B.default.weight"),
    "peft": Dialect("base_model.model.{}", False, *PEFT, comfyui=False),
    "peft original": Dialect("base_model.model.{}", True, *PEFT, comfyui=False),
    "bare": Dialect("{}", False, *PEFT, comfyui=False),
    "bare original": Dialect("{}", True, comfyui=False),
}


def sizes(shape: FluxShape, original: bool) -> dict[str, tuple[int, int]]:
    """(out, in) of every layer that an adapter can sit on."""
    model, found = empty_transformer(shape), {}
    for name in linear_names(shape.num_double, shape.num_single, shape.guidance):
        linear = model.get_submodule(name.diffusers)
        layer = name.original if original else name.diffusers
        rows = found.get(layer, (0, 0))[0] + linear.out_features
        found[layer] = (rows, linear.in_features)
    return found


def lora(out: int, into: int, random: torch.Generator, alpha: float | None = 6.0, rank: int = 4) -> Tensors:
    parts = {"down": torch.randn(rank, into, generator=random), "up": torch.randn(out, rank, generator=random)}
    return parts | ({} if alpha is None else {"alpha": torch.tensor(alpha)})


def loha(out: int, into: int, random: torch.Generator) -> Tensors:
    shapes = {"hada_w1_a": (out, 3), "hada_w1_b": (3, into), "hada_w2_a": (out, 3), "hada_w2_b": (3, into)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()} | {"alpha": torch.tensor(1.5)}


def lokr(split: str) -> Callable[[int, int, torch.Generator], Tensors]:
    """Makers of a lokr whose factors named in `split` ("", "2", "1", "12") are products; ranks 3 and 2, alpha 5."""

    def make(out: int, into: int, random: torch.Generator) -> Tensors:
        height = 7 * 2 if out % 7 == 0 else 3 * 2 if out % 3 == 0 else 2  # so that a cut can run between its rows
        parts = {"alpha": torch.tensor(5.0)}
        for which, rows, columns, rank in (("1", height, 4, 2), ("2", out // height, into // 4, 3)):
            if which in split:
                parts[f"lokr_w{which}_a"] = torch.randn(rows, rank, generator=random)
                parts[f"lokr_w{which}_b"] = torch.randn(rank, columns, generator=random)
            else:
                parts[f"lokr_w{which}"] = torch.randn(rows, columns, generator=random)
        return parts

    return make


MAKERS = {"lora": lora, "loha": loha, "lokr": lokr(""), "lokr 2": lokr("2"), "lokr 1": lokr("1"), "lokr 12": lokr("12")}


def change(parts: Tensors) -> Tensor:
    """The change of weight at strength 1."""
    if "down" in parts:
        return parts["up"] @ parts["down"] * (parts["alpha"] / len(parts["down"]) if "alpha" in parts else 1)
    if "hada_w1_a" in parts:
        product = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        return product * parts["alpha"] / len(parts["hada_w1_b"])
    w1, w2 = (parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"] for name in ("lokr_w1", "lokr_w2"))
    ranks = [len(parts[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in parts]
    return torch.kron(w1, w2) * (parts["alpha"] / ranks[0] if ranks else 1)


def keys(dialect: Dialect, layers: dict[str, Tensors]) -> Tensors:
    """The parts of these layers under a file's keys."""
    suffixes = {"down": dialect.down, "up": dialect.up}
    named = {
        dialect.name(layer) + suffixes.get(part, f".{part}"): t for layer, parts in layers.items() for part, t in parts.items()
    }
    return {name: tensor.contiguous() for name, tensor in named.items()}


def random_layers(shape: FluxShape, original: bool, kind: str) -> dict[str, Tensors]:
    """An adapter of this kind on every layer."""
    random = torch.Generator().manual_seed(0)
    return {layer: MAKERS[kind](*size, random) for layer, size in sizes(shape, original).items()}


def original_changes(changes: Tensors, shape: FluxShape) -> Tensors:
    """Changes by diffusers' names as the original's matrices; zero for a layer that has none."""
    known = {name: torch.zeros(size) for name, size in sizes(shape, False).items()} | changes
    state = {f"{name}.{part}": change[:, 0] if part == "bias" else change for name, change in known.items() for part in BOTH}
    counts = (shape.num_double, shape.num_single)
    state |= {f"{name.diffusers}.weight": torch.zeros(1) for name in norm_names(*counts)}
    whole = to_original(state, *counts, shape.guidance)
    return {name.removesuffix(".weight"): tensor for name, tensor in whole.items() if name.endswith(".weight")}


def diffusers_changes(changes: Tensors, shape: FluxShape) -> Tensors:
    """The inverse, for changes of every layer."""
    state = {f"{name}.{part}": change[:, 0] if part == "bias" else change for name, change in changes.items() for part in BOTH}
    counts = (shape.num_double, shape.num_single)
    state |= {f"{name.original}.scale": torch.zeros(1) for name in norm_names(*counts)}
    cut, layers = to_diffusers(state, *counts, shape.guidance), sizes(shape, False)
    return {layer: cut[f"{layer}.weight"] for layer in layers}
