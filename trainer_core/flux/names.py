"""The two names of everything in FLUX: diffusers' modules and the original (BFL) keys that ComfyUI uses.

One table serves the loader, the exporter of pico, and the check that a LoRA will be found by ComfyUI. Where the original
keeps several of diffusers' modules in one matrix (qkv; a single block's linear1), the table says which rows, in units of the
model's width D. The final modulation's scale and shift halves stand in opposite order in the two.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Name:
    """`rows` are the first and last+1 row of the original's matrix, in units of D; None: all of it."""

    diffusers: str
    original: str
    rows: tuple[int, int] | None = None


SWAPPED_HALVES = "norm_out.linear"


@dataclass(frozen=True)
class Place:
    """Where a tensor of diffusers' is read from: the key in the file, and which of its rows; None: all of them."""

    original: str
    rows: tuple[int, int] | None = None
    swapped_halves: bool = False


_TOP = (
    Name("x_embedder", "img_in"),
    Name("context_embedder", "txt_in"),
    Name("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    Name("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    Name("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    Name("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    Name("norm_out.linear", "final_layer.adaLN_modulation.1"),
    Name("proj_out", "final_layer.linear"),
)
_GUIDANCE = (
    Name("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    Name("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
)
_DOUBLE = (
    Name("attn.to_q", "img_attn.qkv", (0, 1)),
    Name("attn.to_k", "img_attn.qkv", (1, 2)),
    Name("attn.to_v", "img_attn.qkv", (2, 3)),
    Name("attn.add_q_proj", "txt_attn.qkv", (0, 1)),
    Name("attn.add_k_proj", "txt_attn.qkv", (1, 2)),
    Name("attn.add_v_proj", "txt_attn.qkv", (2, 3)),
    Name("attn.to_out.0", "img_attn.proj"),
    Name("attn.to_add_out", "txt_attn.proj"),
    Name("ff.net.0.proj", "img_mlp.0"),
    Name("ff.net.2", "img_mlp.2"),
    Name("ff_context.net.0.proj", "txt_mlp.0"),
    Name("ff_context.net.2", "txt_mlp.2"),
    Name("norm1.linear", "img_mod.lin"),
    Name("norm1_context.linear", "txt_mod.lin"),
)
_DOUBLE_NORMS = (
    Name("attn.norm_q", "img_attn.norm.query_norm"),
    Name("attn.norm_k", "img_attn.norm.key_norm"),
    Name("attn.norm_added_q", "txt_attn.norm.query_norm"),
    Name("attn.norm_added_k", "txt_attn.norm.key_norm"),
)
_SINGLE = (
    Name("attn.to_q", "linear1", (0, 1)),
    Name("attn.to_k", "linear1", (1, 2)),
    Name("attn.to_v", "linear1", (2, 3)),
    Name("proj_mlp", "linear1", (3, 7)),
    Name("proj_out", "linear2"),
    Name("norm.linear", "modulation.lin"),
)
_SINGLE_NORMS = (
    Name("attn.norm_q", "norm.query_norm"),
    Name("attn.norm_k", "norm.key_norm"),
)


def linear_names(num_double: int, num_single: int, guidance: bool) -> list[Name]:
    """Every linear layer of a FLUX with so many blocks: all that an adapter can sit on, and all that ComfyUI can match."""
    return [
        *_TOP,
        *(_GUIDANCE if guidance else ()),
        *_in_blocks("transformer_blocks", "double_blocks", _DOUBLE, num_double),
        *_in_blocks("single_transformer_blocks", "single_blocks", _SINGLE, num_single),
    ]


def norm_names(num_double: int, num_single: int) -> list[Name]:
    """The query and key norms; diffusers' `.weight` is the original's `.scale`."""
    return [
        *_in_blocks("transformer_blocks", "double_blocks", _DOUBLE_NORMS, num_double),
        *_in_blocks("single_transformer_blocks", "single_blocks", _SINGLE_NORMS, num_single),
    ]


def places(num_double: int, num_single: int, guidance: bool, width: int) -> dict[str, Place]:
    """Where each of diffusers' tensors lies in a file of the original naming."""
    found = {}
    for name in linear_names(num_double, num_single, guidance):
        rows = (name.rows[0] * width, name.rows[1] * width) if name.rows else None
        for part in ("weight", "bias"):
            swapped = name.diffusers == SWAPPED_HALVES
            found[f"{name.diffusers}.{part}"] = Place(f"{name.original}.{part}", rows, swapped)
    for name in norm_names(num_double, num_single):
        found[f"{name.diffusers}.weight"] = Place(f"{name.original}.scale")
    return found


def to_original(tensors: dict[str, Tensor], num_double: int, num_single: int, guidance: bool) -> dict[str, Tensor]:
    """diffusers' tensors joined and renamed to the original's."""
    parts: dict[str, list[Tensor]] = {}
    for name in linear_names(num_double, num_single, guidance):
        for part in ("weight", "bias"):
            tensor = tensors[f"{name.diffusers}.{part}"]
            if name.diffusers == SWAPPED_HALVES:
                tensor = torch.cat(tensor.chunk(2)[::-1])
            parts.setdefault(f"{name.original}.{part}", []).append(tensor)
    original = {key: torch.cat(pieces) for key, pieces in parts.items()}
    for name in norm_names(num_double, num_single):
        original[f"{name.original}.scale"] = tensors[f"{name.diffusers}.weight"]
    return original


def _in_blocks(diffusers_list: str, original_list: str, names: tuple[Name, ...], count: int) -> list[Name]:
    return [
        Name(f"{diffusers_list}.{index}.{name.diffusers}", f"{original_list}.{index}.{name.original}", name.rows)
        for index in range(count)
        for name in names
    ]
