"""The base of a run as ComfyUI's own MODEL, CLIP and VAE. Imported late: it needs comfy.* and torch.

FLUX files load as ComfyUI's loaders load them. pico takes three detours, because ComfyUI takes the sizes of FLUX for granted:
its transformer's configuration is read off the file's shapes, its encoders are built by transformers as in training, and its
sampling shift is its own. Nothing of ComfyUI is patched.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.model_detection
import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ..trainer_core import pico
from ..trainer_core.errors import JobError
from ..trainer_core.flux.dialects import open_clip, open_t5, open_transformer, open_vae, parts_in
from ..trainer_core.flux.flavours import FLAVOURS
from ..trainer_core.flux.resolve import resolve_files
from ..trainer_core.flux.tensors import TensorSource, open_tensors
from ..trainer_core.flux.text import load_clip, load_t5, load_tokenizer, token_ids
from ..trainer_core.specs.base import BaseModelSpec

HEAD_DIM = 128
ADAPTED = (".lora_A.weight", ".lokr_w1", ".lokr_w1_a", ".hada_w1_a")  # one key of each adapted layer ends so

Patcher = comfy.model_patcher.ModelPatcher
Tokens = dict[str, list[list[tuple[int, float]]]]  # encoder -> batch of (token number, weight), as ComfyUI passes them


def load_flux(base: BaseModelSpec) -> tuple[Patcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """The base, without any LoRA. Weights are read when a sampler or encoder first needs them on its device."""
    if base.model_flavour == "pico":
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(pico.VAE_PATH), safe_load=True))
        return _load_pico_transformer(pico.TRANSFORMER_PATH), _load_pico_clip(), vae
    files = resolve_files(base)
    model = comfy.sd.load_diffusion_model_state_dict(tensors_for_comfyui(files.transformer, "transformer", open_transformer))
    embeddings = folder_paths.get_folder_paths("embeddings")
    encoders = [tensors_for_comfyui(files.clip_l, "clip_l", open_clip), tensors_for_comfyui(files.t5, "t5", open_t5)]
    clip = comfy.sd.load_text_encoder_state_dicts(encoders, embeddings, comfy.sd.CLIPType.FLUX)
    return model, clip, comfy.sd.VAE(sd=tensors_for_comfyui(files.vae, "vae", open_vae))


def tensors_for_comfyui(path: Path, part: str, open_part: Callable[[Path], TensorSource]) -> dict[str, Tensor]:
    """The part's weights for ComfyUI. A file with that part alone is read by ComfyUI's own loader, whatever it is in; from
    whole checkpoints, folders and GGUF the core reads, and what it had to unpack comes in bfloat16.
    """
    if path.is_file() and path.suffix.lower() == ".safetensors" and parts_in(open_tensors(path)).keys() <= {part}:
        return comfy.utils.load_torch_file(str(path), safe_load=True)
    source = open_part(path)
    prefix = "text_model." if part == "clip_l" else ""
    return {prefix + name: _packed(source.read(name), entry.dtype) for name, entry in source.entries.items()}


def _packed(tensor: Tensor, stored: str) -> Tensor:
    """In no more bytes than needed: float32 only where the file has it."""
    return tensor.bfloat16() if tensor.dtype == torch.float32 and stored != "F32" else tensor


def apply_lora(model: Patcher, path: Path, strength: float) -> Patcher:
    """The model with the LoRA on it, by ComfyUI's own loader; JobError unless every key of the file finds its weight."""
    if strength == 0:
        return model
    lora = comfy.utils.load_torch_file(str(path), safe_load=True)
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    layers = {key.removesuffix(suffix) for key in lora for suffix in ADAPTED if key.endswith(suffix)}
    unknown = sorted(layers - names.keys())
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(lora), names)
    patched = model.clone()
    unmatched = unknown or sorted(map(str, patches.keys() - set(patched.add_patches(patches, strength))))
    if unmatched:
        raise JobError(
            f"{path} does not fit the base: ComfyUI finds no weight for {unmatched[0]} and {len(unmatched) - 1} more; "
            "was the model file changed since the training?"
        )
    return patched


def _load_pico_transformer(path: Path) -> Patcher:
    """As comfy.sd.load_diffusion_model_state_dict does it, but with the sizes of the file."""
    tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
    width, context = tensors["img_in.weight"].shape[0], tensors["txt_in.weight"].shape[1]
    detected = comfy.model_detection.detect_unet_config(tensors, "")
    sizes = {"hidden_size": width, "num_heads": width // HEAD_DIM, "context_in_dim": context}
    config = comfy.supported_models.Flux({**detected, **sizes})
    config.sampling_settings["shift"] = math.log(FLAVOURS["pico"].sampler.shift)  # ModelSamplingFlux takes the exponent
    device = management.get_torch_device()
    dtype = management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(tensors),
        supported_dtypes=list(config.supported_inference_dtypes),
        weight_dtype=comfy.utils.weight_dtype(tensors),
    )
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, config.supported_inference_dtypes))
    model = config.get_model(tensors, "").to(management.unet_offload_device())
    model.load_model_weights(tensors, "")
    return Patcher(model, load_device=device, offload_device=management.unet_offload_device())


def _load_pico_clip() -> comfy.sd.CLIP:
    target = comfy.supported_models_base.ClipTarget(PicoTokenizer, PicoTextEncoders)
    return comfy.sd.CLIP(target)


class PicoTokenizer:
    """What ComfyUI asks of a tokenizer. Weights such as (word:1.2) are not read: they are words like any other."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None):
        self._tokenizer = load_tokenizer(pico.TOKENIZER_PATH)
        flavour = FLAVOURS["pico"]
        self._lengths = {"l": flavour.clip_max_length, "t5xxl": flavour.t5_max_length}

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: Any) -> Tokens:
        ids = {name: token_ids(self._tokenizer, [text], length)[0].tolist() for name, length in self._lengths.items()}
        return {name: [[(number, 1.0) for number in numbers]] for name, numbers in ids.items()}

    def state_dict(self) -> dict[str, Any]:
        return {}


class PicoTextEncoders(torch.nn.Module):
    """What ComfyUI asks of a text model, given by the encoders that training uses, in float32 as there."""

    dtypes = frozenset({torch.float32})

    def __init__(self, device: torch.device, dtype: torch.dtype, model_options: Any):
        super().__init__()
        self.clip = load_clip(pico.CLIP_L_PATH, torch.float32, torch.device(device))
        self.t5 = load_t5(pico.T5_PATH, torch.float32, torch.device(device))

    def set_clip_options(self, options: Any) -> None:
        """There are none: the last layer of each encoder is what the base was trained with."""

    def reset_clip_options(self) -> None:
        """There are none."""

    def encode_token_weights(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """(B, L, D) of T5 and (B, P) of CLIP."""
        pooled_BP = self.clip(input_ids=_ids(tokens["l"], self.clip.device)).pooler_output
        text_BLD = self.t5(input_ids=_ids(tokens["t5xxl"], self.t5.device)).last_hidden_state
        device = management.intermediate_device()
        return text_BLD.to(device), pooled_BP.to(device)


def _ids(batch: list[list[tuple[int, float]]], device: torch.device) -> Tensor:
    return torch.tensor([[number for number, *_ in row] for row in batch], device=device)
