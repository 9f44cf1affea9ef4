"""A FLUX transformer from its file: its shape is read off the keys, its weights come in under diffusers' names, one at a time.

Reads the original (BFL) naming and diffusers' own. Widths, depths and the guidance embedder come from the tensors, so the
small built-in base and the full 19+38 blocks take the same way. The model is made on the meta device and filled a layer at a
time (`fill.py`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from ..errors import JobError
from .dialects import open_transformer
from .fill import Visit, fill, nothing, unseen, watched
from .names import Place, places
from .quantize import Quantiser
from .tensors import TensorSource

HEAD_DIM = 128
ROPE_AXES = (16, 56, 56)
BLOCK = re.compile(r"(single_)?transformer_blocks\.\d+")


@dataclass(frozen=True)
class FluxShape:
    """What tells one FLUX transformer from another; `width` is the hidden size D."""

    num_double: int
    num_single: int
    width: int
    in_channels: int
    t5_width: int
    clip_width: int
    guidance: bool


@dataclass(frozen=True)
class FluxWeights:
    """The tensors of a FLUX transformer by diffusers' names, still in the file. `places` says what is read for each."""

    source: TensorSource
    shape: FluxShape
    places: dict[str, Place]

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU and in the file's format."""
        place = self.places[name]
        tensor = self.source.read(place.original, place.rows)
        return torch.cat(tensor.chunk(2)[::-1]) if place.swapped_halves else tensor


def open_weights(path: Path) -> FluxWeights:
    """The transformer in this file, checked by its header alone. JobError says what the file is instead, or what it lacks."""
    source = open_transformer(path)
    shape = _read_shape(source)
    found = _places(source, shape)
    wrong = []
    for name, size in _sizes(shape).items():
        place = found[name]
        if place.original not in source.entries:
            wrong.append(f"lacks {place.original}")
            continue
        stored = source.entries[place.original].shape
        rows = place.rows[1] - place.rows[0] if place.rows else stored[0]
        if (rows, *stored[1:]) != size or (place.rows and place.rows[1] > stored[0]):
            wrong.append(f"has another size of {place.original}")
    unknown = source.entries.keys() - {place.original for place in found.values()}
    wrong += [f"has {name}" for name in sorted(unknown)]
    if wrong:
        raise JobError(f"{path} does not fit FLUX.1: it {', '.join(wrong[:5])}; is it another model or a broken file?")
    return FluxWeights(source, shape, found)


def read_shape(path: Path) -> FluxShape:
    """The shape of the transformer in this file; JobError says what the file is instead."""
    return open_weights(path).shape


def empty_transformer(shape: FluxShape) -> FluxTransformer2DModel:
    """The transformer on the meta device: its modules and sizes, without weights."""
    with torch.device("meta"):
        return FluxTransformer2DModel(**config(shape))


def load_transformer(
    weights: FluxWeights | Path,
    dtype: torch.dtype,
    device: torch.device,
    quantiser: Quantiser | None = None,
    stays_on_host: Callable[[str], bool] = nothing,
    waits_on_host: Callable[[str], bool] = nothing,
    visit: Visit = unseen,
) -> FluxTransformer2DModel:
    """The frozen transformer in evaluation mode. Layers that stay on the host are neither quantised nor moved; those that wait
    there visit the card later (`offload.py`). `visit` is told of each tensor before it is read.

    JobError when the file lacks a tensor or is no FLUX.
    """
    weights = open_weights(weights) if isinstance(weights, Path) else weights
    model = empty_transformer(weights.shape)
    read = watched(weights.read, visit)
    fill(model, read, dtype, device, quantiser, stays_on_host=stays_on_host, waits_on_host=waits_on_host)
    return model


def by_block(shape: FluxShape, progress: Callable[[int, int], None]) -> Visit:
    """Tells, at each tensor, how many of the transformer's blocks are done."""
    blocks: dict[str, None] = {}  # those that were begun

    def visit(name: str) -> None:
        if block := BLOCK.match(name):
            blocks[block[0]] = None
        progress(max(0, len(blocks) - 1), shape.num_double + shape.num_single)

    return visit


def config(shape: FluxShape) -> dict[str, Any]:
    """The arguments of diffusers' class for this shape."""
    return {
        "patch_size": 1,
        "in_channels": shape.in_channels,
        "num_layers": shape.num_double,
        "num_single_layers": shape.num_single,
        "attention_head_dim": HEAD_DIM,
        "num_attention_heads": shape.width // HEAD_DIM,
        "joint_attention_dim": shape.t5_width,
        "pooled_projection_dim": shape.clip_width,
        "guidance_embeds": shape.guidance,
        "axes_dims_rope": ROPE_AXES,
    }


@dataclass(frozen=True)
class _Keys:
    """Where each naming keeps what tells the shape."""

    image: str
    text: str
    pooled: str
    guidance: str
    double: str
    single: str


_ORIGINAL = _Keys(
    "img_in.weight",
    "txt_in.weight",
    "vector_in.in_layer.weight",
    "guidance_in.in_layer.weight",
    "double_blocks",
    "single_blocks",
)
_DIFFUSERS = _Keys(
    "x_embedder.weight",
    "context_embedder.weight",
    "time_text_embed.text_embedder.linear_1.weight",
    "time_text_embed.guidance_embedder.linear_1.weight",
    "transformer_blocks",
    "single_transformer_blocks",
)


def _read_shape(source: TensorSource) -> FluxShape:
    shapes = {name: entry.shape for name, entry in source.entries.items()}
    keys = _keys(source)
    return FluxShape(
        num_double=_count(shapes, keys.double),
        num_single=_count(shapes, keys.single),
        width=shapes[keys.image][0],
        in_channels=shapes[keys.image][1],
        t5_width=shapes[keys.text][1],
        clip_width=shapes[keys.pooled][1],
        guidance=keys.guidance in shapes,
    )


def _keys(source: TensorSource) -> _Keys:
    return _ORIGINAL if _ORIGINAL.image in source.entries else _DIFFUSERS


def _places(source: TensorSource, shape: FluxShape) -> dict[str, Place]:
    """Where each of diffusers' tensors is read from."""
    if _keys(source) is _ORIGINAL:
        return places(shape.num_double, shape.num_single, shape.guidance, shape.width)
    return {name: Place(name) for name in _sizes(shape)}


@lru_cache
def _sizes(shape: FluxShape) -> Mapping[str, tuple[int, ...]]:
    """The size of each tensor, by diffusers' name. To make a model, even an empty one, takes longer than to read a header."""
    return {name: tuple(tensor.shape) for name, tensor in empty_transformer(shape).state_dict().items()}


def _count(names: dict[str, Any], blocks: str) -> int:
    found = (re.match(rf"{blocks}\.(\d+)\.", name) for name in names)
    return len({match[1] for match in found if match})
