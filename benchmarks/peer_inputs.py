"""What each side of `peers.py` is given: one model in the layouts they read, and the same pictures under one caption.

The transformer has random weights, in the original naming for ComfyUI and once more, the same numbers, in a diffusers folder
for the rest. VAE and text encoders are of FLUX's kinds in a few thousandths of its size, with tokenizers of single letters: of
encoding, what is to be seen is what a trainer adds to it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from trainer_core.flux.load import FluxShape, load_transformer
from trainer_core.flux.text import CLIP_L, T5_V1_1_XXL
from trainer_core.flux.vae import FLUX_VAE

from .encoding import make_photos
from .random_flux import original_shapes, write_random

CAPTION = "a photo of noise"  # one for all pictures: the diffusers script takes no file of captions
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CLIP_ENDS = {"<|startoftext|>": 2 * len(LETTERS), "<|endoftext|>": 2 * len(LETTERS) + 1}
CLIP_LENGTH, NUM_TEXT = 77, 512
TINY_VAE = {"block_out_channels": (32, 64, 64, 64)}
TINY_CLIP = {"intermediate_size": 64, "num_hidden_layers": 2}
TINY_T5 = {"d_ff": 64, "num_layers": 1, "num_heads": 1, "vocab_size": 128}
SCHEDULER = {"shift": 3.0, "use_dynamic_shifting": True}


@dataclass(frozen=True)
class Inputs:
    """Where it all lies."""

    folder: Path  # of the whole model, as diffusers writes it
    original: Path  # the transformer in the original naming
    pictures: Path
    encoded: Path  # for ComfyUI, whose text encoders come in FLUX's size alone: latents, text, pooled


def write_inputs(folder: Path, shape: FluxShape, count: int, pixels: int) -> Inputs:
    """All of it; takes twice the transformer on the disk."""
    inputs = Inputs(folder / "model", folder / "flux.safetensors", folder / "pictures", folder / "encoded.safetensors")
    write_random(inputs.original, original_shapes(shape))
    write_pipeline(inputs, shape)
    make_photos(inputs.pictures, count, pixels)
    random = torch.Generator().manual_seed(0)
    sizes = {
        "latents": (count, 16, pixels // 8, pixels // 8),
        "text": (1, NUM_TEXT, shape.t5_width),
        "pooled": (1, shape.clip_width),
    }
    save_file({name: torch.randn(size, generator=random) for name, size in sizes.items()}, inputs.encoded)
    return inputs


def write_pipeline(inputs: Inputs, shape: FluxShape) -> None:
    """The model as a folder of diffusers'."""
    ends = {"bos_token_id": CLIP_ENDS["<|startoftext|>"], "eos_token_id": CLIP_ENDS["<|endoftext|>"]}
    clip = CLIP_L | TINY_CLIP | ends | {"hidden_size": shape.clip_width, "vocab_size": len(clip_vocabulary())}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {
            "vae": AutoencoderKL(**FLUX_VAE | TINY_VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**clip)),
            "text_encoder_2": T5EncoderModel(T5Config(**T5_V1_1_XXL | TINY_T5 | {"d_model": shape.t5_width})),
        }
    FluxPipeline(
        **parts,
        tokenizer=CLIPTokenizer(vocab=clip_vocabulary(), merges=[], model_max_length=CLIP_LENGTH),
        tokenizer_2=T5TokenizerFast(vocab=t5_vocabulary(), extra_ids=0, model_max_length=NUM_TEXT),
        transformer=load_transformer(inputs.original, torch.bfloat16, torch.device("cpu")),
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
    ).save_pretrained(inputs.folder)


def clip_vocabulary() -> dict[str, int]:
    """Each letter, within a word and at its end."""
    return {piece: number for number, piece in enumerate([*LETTERS, *(f"{letter}</w>" for letter in LETTERS)])} | CLIP_ENDS


def t5_vocabulary() -> list[tuple[str, float]]:
    """Each letter, at a cost."""
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in LETTERS)]


def write_json(path: Path, data: Mapping[str, Any] | list[Any]) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path
