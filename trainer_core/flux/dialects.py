"""What a model file holds, told from the names of its tensors, and each part of a FLUX by the names that its loader knows.

The one idea: a part (the transformer, the VAE, an encoder) has tensors by which it is known wherever it lies: alone in a file,
in a folder of diffusers', or behind a prefix in a whole checkpoint as ComfyUI saves them. So a path is all that a job has to
give; nobody says which dialect it is in. A file without the part is described by what it is instead, from a table of the
marks of other models. Only headers are read here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import JobError
from .tensors import Renamed, TensorSource, open_tensors, with_prefix


@dataclass(frozen=True)
class Part:
    """One of the four models of a FLUX. It is found behind the first of `prefixes` where all of one set of `marks` stand."""

    meaning: str
    mend: str
    prefixes: tuple[str, ...]
    marks: tuple[tuple[str, ...], ...]


TRANSFORMER = Part(
    "a FLUX.1 transformer",
    "choose another transformer_path",
    ("model.diffusion_model.", "diffusion_model.", "transformer.", ""),
    (
        ("img_in.weight", "txt_in.weight", "vector_in.in_layer.weight", "final_layer.linear.weight"),
        ("x_embedder.weight", "context_embedder.weight", "time_text_embed.text_embedder.linear_1.weight", "proj_out.weight"),
    ),
)
VAE = Part(
    "a FLUX VAE (ae.safetensors) or TAEF1",
    "choose another vae_path",
    ("vae.", "first_stage_model.", ""),
    (
        ("encoder.conv_in.weight", "decoder.conv_in.weight"),
        ("taesd_encoder.0.weight", "taesd_decoder.1.weight"),
        ("encoder.layers.0.weight", "decoder.layers.0.weight"),
    ),
)
CLIP_L = Part(
    "a CLIP-L text encoder",
    "choose another clip_l_path",
    ("text_encoders.clip_l.transformer.", "clip_l.transformer.", "clip_l.", ""),
    (("text_model.embeddings.token_embedding.weight",), ("embeddings.token_embedding.weight",)),
)
T5 = Part(
    "a T5 v1.1 XXL encoder",
    "choose another t5_path",
    ("text_encoders.t5xxl.transformer.", "t5xxl.transformer.", "t5xxl.", ""),
    (
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"),
        ("enc.blk.0.attn_q.weight", "enc.blk.0.ffn_gate.weight"),
    ),
)
PARTS = {"transformer": TRANSFORMER, "vae": VAE, "clip_l": CLIP_L, "t5": T5}

PACKED_CHANNELS = 64  # 16 latent channels in patches of 2 x 2
RELATIVES = {384: "FLUX.1 Fill", 128: "FLUX.1 Canny or Depth"}

# what cannot be trained on although its names may be those of a FLUX
UNREADABLE = (
    (".absmax", "weights that bitsandbytes quantised to 4 bits (nf4 or fp4)"),
    (".quant_state.", "weights that bitsandbytes quantised to 4 bits (nf4 or fp4)"),
    (".wscales", "a model in Nunchaku's own 4-bit format"),
    (".smooth_factor", "a model in Nunchaku's own 4-bit format"),
    (".weight._data", "weights that quanto quantised"),
)
# a piece of a name -> what has it; the first that is found counts
OTHERS = (
    (".lora_A", "a LoRA"),
    (".lora_down", "a LoRA"),
    (".lokr_w", "a LoRA (LoKr)"),
    (".hada_w", "a LoRA (LoHa)"),
    ("lora_unet_", "a LoRA"),
    ("controlnet_", "a ControlNet"),
    ("redux_up.", "FLUX.1 Redux, which only encodes reference pictures"),
    ("distilled_guidance_layer.", "a Chroma model, which came out of FLUX.1 but has another architecture"),
    ("double_stream_modulation_img.", "a FLUX.2 model"),
    ("individual_token_refiner.", "a HunyuanVideo model"),
    ("joint_blocks.", "a Stable Diffusion 3 model"),
    ("cap_embedder.", "a Lumina or Z-Image model"),
    ("txt_norm.", "a Qwen-Image model"),
    ("caption_projection.", "a PixArt or Sana model"),
    ("patch_embedding.", "a Wan model"),
    ("conditioner.embedders.1.", "an SDXL checkpoint"),
    ("label_emb.0.0.", "an SDXL model"),
    ("add_embedding.linear_1.", "an SDXL model"),
    ("cond_stage_model.model.", "a Stable Diffusion 2 checkpoint"),
    ("cond_stage_model.transformer.", "a Stable Diffusion 1.5 checkpoint"),
    ("input_blocks.0.0.", "a Stable Diffusion 1.5 or 2 model"),
    ("down_blocks.0.attentions.0.transformer_blocks.", "a Stable Diffusion 1.5 or 2 model"),
    ("context_embedder.", "a Stable Diffusion 3 model or the like"),
    ("vision_model.", "a CLIP model with its picture encoder"),
    ("transformer.resblocks.", "a CLIP in the OpenCLIP naming"),
    ("model.layers.0.", "a language model"),
    ("blk.0.attn_q.", "a language model"),
    ("double_blocks.", "a part of a FLUX, or a relative of it, with pieces missing"),
    ("transformer_blocks.", "a transformer of another family"),
    ("taef1", "one half of TAEF1"),
)


def open_transformer(path: Path) -> TensorSource:
    """The tensors of the transformer in this file or folder, in the original naming or diffusers', without a prefix."""
    source = _open_part(path, TRANSFORMER)
    first = source.entries.get("img_in.weight") or source.entries["x_embedder.weight"]
    if first.shape[-1] != PACKED_CHANNELS:
        relative = RELATIVES.get(first.shape[-1], "a relative of FLUX.1")
        raise JobError(
            f"{path} is {relative}: it takes {first.shape[-1]} input channels, and the text-to-image models take "
            f"{PACKED_CHANNELS}; {TRANSFORMER.mend}"
        )
    return source


def open_vae(path: Path) -> TensorSource:
    """The tensors of the VAE, in the original naming, diffusers', or that of TAEF1; JobError when it is of another model."""
    source = _open_part(path, VAE)
    first = source.entries.get("decoder.conv_in.weight")
    channels = first.shape[1] if first is not None and len(first.shape) > 1 else None
    if first is not None and channels != 16:
        whose = {4: " (of Stable Diffusion 1.5 or SDXL)", 32: " (of FLUX.2)"}.get(channels, "")
        raise JobError(
            f"{path} is a VAE of another model{whose}: its latents have {channels} channels, those of FLUX.1 have 16; "
            "choose ae.safetensors"
        )
    return source


def open_clip(path: Path) -> TensorSource:
    """The tensors of CLIP's text tower by transformers' names, without `text_model.`."""
    source = _open_part(path, CLIP_L)
    marker = "text_model." if any(name.startswith("text_model.") for name in source.entries) else ""
    tower = ("embeddings.", "encoder.layers.", "final_layer_norm.")
    names = {name.removeprefix(marker): name for name in source.entries if name.startswith(marker)}
    return Renamed(
        source, {ours: name for ours, name in names.items() if ours.startswith(tower) and "position_ids" not in ours}
    )


def open_t5(path: Path) -> TensorSource:
    """The tensors of T5's encoder by transformers' names; those of llama.cpp are translated."""
    source = _open_part(path, T5)
    if "enc.blk.0.attn_q.weight" in source.entries:
        return Renamed(source, {_from_llama_cpp(name): name for name in source.entries if not name.startswith("dec.")})
    if "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in source.entries:
        raise JobError(f"{path} is a UMT5 encoder (of Wan), not {T5.meaning}; {T5.mend}")
    names = {name: name for name in source.entries if name.startswith(("shared.", "encoder."))}
    if "shared.weight" not in names and "encoder.embed_tokens.weight" in names:
        names["shared.weight"] = names["encoder.embed_tokens.weight"]
    return Renamed(source, names)


def parts_in(source: TensorSource) -> dict[str, str]:
    """Which parts of a FLUX are in it, by the names of `PARTS`, each with the prefix that its tensors have."""
    found = {name: _prefix(source, part) for name, part in PARTS.items()}
    return {name: prefix for name, prefix in found.items() if prefix is not None}


def describe(source: TensorSource) -> str:
    """A few words on what it is, as in 'it is a LoRA'."""
    names = source.entries.keys()
    if not names:
        return "a file without any tensor"
    other = _first((*UNREADABLE, *OTHERS), names)
    parts = parts_in(source)
    if other and "transformer" not in parts:
        return other
    meanings = {"transformer": TRANSFORMER.meaning, "vae": "a VAE", "clip_l": "a CLIP text encoder", "t5": "a T5 text encoder"}
    if parts:
        return " with ".join(meanings[part] for part in parts)
    if any(name.startswith(("decoder.", "encoder.down", "taesd_")) for name in names):
        return "a VAE, or a half of one"
    return "a model that is not known here"


def _open_part(path: Path, part: Part) -> TensorSource:
    source = open_tensors(path)
    unreadable = _first(UNREADABLE, source.entries)
    if unreadable:
        raise JobError(
            f"{path} holds {unreadable}, which cannot be trained on as they are; take the bf16 or fp8 file, and choose "
            "base_model_precision to have it quantised here"
        )
    prefix = _prefix(source, part)
    if prefix is None:
        raise JobError(f"{path} is {describe(source)}, not {part.meaning}; {part.mend}")
    return with_prefix(source, prefix)


def _first(table: Iterable[tuple[str, str]], names: Iterable[str]) -> str:
    """The meaning of the first mark that is a piece of any name, or nothing."""
    names = list(names)
    return next((meaning for mark, meaning in table if any(mark in name for name in names)), "")


def _prefix(source: TensorSource, part: Part) -> str | None:
    """What stands before the part's names, or None when the part is not there."""
    names = source.entries.keys()
    for prefix in part.prefixes:
        if any(all(prefix + mark in names for mark in marks) for marks in part.marks):
            return prefix
    return None


_LLAMA_CPP = {
    "token_embd": "shared",
    "output_norm": "encoder.final_layer_norm",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_norm": "layer.0.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
    "ffn_norm": "layer.1.layer_norm",
}


def _from_llama_cpp(name: str) -> str:
    """`enc.blk.3.attn_q.weight` -> `encoder.block.3.layer.0.SelfAttention.q.weight`."""
    *place, layer, leaf = name.split(".")
    block = f"encoder.block.{place[2]}." if place[:2] == ["enc", "blk"] else ""
    return f"{block}{_LLAMA_CPP.get(layer, layer)}.{leaf}"
