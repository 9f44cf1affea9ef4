"""A FLUX transformer from one file: its shape is read off the keys, its weights are renamed for diffusers.

Reads the original (BFL) naming, with or without ComfyUI's prefix, and diffusers' own. Widths, depths and the guidance
embedder come from the tensors, so the small built-in base and the full 19+38 blocks take the same way. The model is made on
the meta device and takes over the file's tensors one by one, so the file is never in memory twice.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from ..errors import JobError
from .files import read_header, read_tensors
from .names import to_diffusers

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
HEAD_DIM = 128
ROPE_AXES = (16, 56, 56)


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


def read_shape(path: Path) -> FluxShape:
    """The shape of the transformer in this file; JobError says what the file is instead."""
    shapes = {name: entry["shape"] for name, entry in read_header(path).items() if name != "__metadata__"}
    prefix = _prefix(shapes)
    names = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    keys = _ORIGINAL if "img_in.weight" in names else _DIFFUSERS
    if not {keys.image, keys.text, keys.pooled} <= names.keys():
        raise JobError(f"{path} is not a FLUX.1 transformer: it has no {keys.image!r} (it holds {_guess(shapes)})")
    return FluxShape(
        num_double=_count(names, keys.double),
        num_single=_count(names, keys.single),
        width=names[keys.image][0],
        in_channels=names[keys.image][1],
        t5_width=names[keys.text][1],
        clip_width=names[keys.pooled][1],
        guidance=keys.guidance in names,
    )


def empty_transformer(shape: FluxShape) -> FluxTransformer2DModel:
    """The transformer on the meta device: its modules and sizes, without weights."""
    with torch.device("meta"):
        return FluxTransformer2DModel(**config(shape))


def load_transformer(path: Path, dtype: torch.dtype, device: torch.device) -> FluxTransformer2DModel:
    """The frozen transformer in evaluation mode. JobError when the file lacks a tensor or is no FLUX."""
    shape = read_shape(path)
    prefix = _prefix(read_header(path))
    read = read_tensors(path, lambda name: name.startswith(prefix), dtype, device)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in read.items()}
    if "img_in.weight" in tensors:
        try:
            tensors = to_diffusers(tensors, shape.num_double, shape.num_single, shape.guidance)
        except KeyError as error:
            raise JobError(f"{path} lacks the tensor {error}; download or copy it again") from None
    model = empty_transformer(shape)
    result = model.load_state_dict(tensors, strict=False, assign=True)
    if result.missing_keys or result.unexpected_keys:
        wrong = [f"lacks {name}" for name in result.missing_keys] + [f"has {name}" for name in result.unexpected_keys]
        raise JobError(f"{path} does not fit FLUX.1: it {', '.join(wrong[:5])}; is it another model or a broken file?")
    return model.requires_grad_(False).eval()


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


def _prefix(names: Iterable[str]) -> str:
    """What stands before every name of the transformer: ComfyUI adds a prefix where it saves a whole checkpoint."""
    return next(prefix for prefix in PREFIXES if not prefix or any(name.startswith(prefix) for name in names))


def _count(names: dict[str, Any], blocks: str) -> int:
    found = (re.match(rf"{blocks}\.(\d+)\.", name) for name in names)
    return len({match[1] for match in found if match})


def _guess(names: dict[str, Any]) -> str:
    """A few words on what a file is that is not a FLUX transformer."""
    for mark, meaning in (
        ("lora_A", "a LoRA"),
        ("lora_down", "a LoRA"),
        ("absmax", "weights that bitsandbytes quantised to 4 bits"),
        ("input_blocks.", "a Stable Diffusion or SDXL model"),
        ("decoder.", "a VAE"),
        ("text_model.", "a CLIP text encoder"),
        ("encoder.block.", "a T5 text encoder"),
    ):
        if any(mark in name for name in names):
            return meaning
    return f"{len(names)} tensors such as {next(iter(names), 'none')!r}"
