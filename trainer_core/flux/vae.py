"""Between pixels and latents.

Two kinds of VAE are read: FLUX's own (`ae.safetensors`, original or diffusers naming) and the tiny one, TAEF1, in ComfyUI's
one-file form (`taesd_encoder.*`, `taesd_decoder.*`), which the built-in base uses, or in diffusers'. What leaves `encode` is
what the transformer sees: for FLUX's VAE (mean - shift) * scale, for the tiny one its plain output, made for that scale.
Always float32: a VAE is small, and rounding here would end in every training step.

Legend: B, pixels (B, 3, 8H, 8W) in [-1, 1], latents (B, 16, H, W) of about unit variance.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor

from ..errors import JobError
from ..guard import is_out_of_memory
from .dialects import open_vae
from .tensors import open_tensors

Model = TypeVar("Model", AutoencoderKL, AutoencoderTiny)

log = logging.getLogger(__name__)

LATENT_CHANNELS = 16
DOWNSCALE = 8
TILE = 512  # pixels; diffusers' own 1024 would leave pictures of FLUX's home size whole
FLUX_SCALE, FLUX_SHIFT = 0.3611, 0.1159  # of FLUX.1's VAE config
FLUX_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 32,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": FLUX_SCALE,
    "shift_factor": FLUX_SHIFT,
    "force_upcast": True,
    "sample_size": 1024,
}
TINY_VAE = {"latent_channels": LATENT_CHANNELS, "scaling_factor": 1.0, "shift_factor": 0.0}


@dataclass(frozen=True)
class Vae:
    """A frozen VAE; `model` is diffusers'."""

    model: AutoencoderKL | AutoencoderTiny
    device: torch.device

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels in [-1, 1] to latents, on the CPU. FLUX's VAE gives the mean, so that a picture has one latent."""
        layout = torch.channels_last if self.device.type == "cpu" else torch.preserve_format  # as its weights are
        pixels = pixels.to(self.device, torch.float32, memory_format=layout)
        if isinstance(self.model, AutoencoderTiny):
            return self.model.encode(pixels).latents.cpu()
        mean = self.model.encode(pixels).latent_dist.mode()
        return ((mean - FLUX_SHIFT) * FLUX_SCALE).cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pixels in about [-1, 1], on the CPU."""
        latents = latents.to(self.device, torch.float32)
        if isinstance(self.model, AutoencoderKL):
            latents = latents / FLUX_SCALE + FLUX_SHIFT
        return self.model.decode(latents).sample.cpu()


def load_vae(path: Path, device: torch.device, *, tiled: bool = False) -> Vae:
    """The VAE in this file; JobError when it is neither of the two kinds. Tiled, it takes pictures above TILE in pieces."""
    source = open_vae(path)
    tensors = {name: source.read(name).float() for name in source.entries}
    if "decoder.conv_in.weight" in tensors:
        tensors = _kl_to_diffusers(tensors)
        model = _empty(AutoencoderKL, FLUX_VAE | _widths(tensors))
    else:
        model, tensors = _empty(AutoencoderTiny, TINY_VAE), tiny_to_diffusers(tensors)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise JobError(f"{path} is a VAE of another model, or with pieces missing; choose ae.safetensors") from None
    if tiled:
        take_in_tiles(model)
    return _frozen(model, device)


def load_decoder(path: Path, device: torch.device) -> Vae:
    """TAEF1's decoder alone, which cannot encode: from a file of its own, as ComfyUI's vae_approx folder has it, or from one
    with the encoder too. JobError when it is something else."""
    model, part = _empty(AutoencoderTiny, TINY_VAE), "decoder."
    try:
        source, alone = open_tensors(path), "1.weight"
        prefix = "taesd_decoder." if alone in source.entries else ""
        source = source if alone in source.entries else open_vae(path)
        renamed = tiny_to_diffusers({prefix + name: source.read(name).float() for name in source.entries})
        model.encoder = torch.nn.Identity()
        model.load_state_dict({name: renamed[name] for name in renamed if name.startswith(part)}, assign=True)
    except (JobError, OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise JobError(
            f"base.preview_decoder_path: {path} is not TAEF1's decoder; choose taef1_decoder.safetensors, or leave it empty"
        ) from None
    return _frozen(model, device)


def take_in_tiles(model: AutoencoderKL | AutoencoderTiny) -> None:
    """Have the VAE take pictures above TILE in pieces. TAEF1 needs little memory, and diffusers' tiles know it with 4 channels
    only, so it takes them whole."""
    if isinstance(model, AutoencoderTiny):
        log.warning("base.vae_enable_tiling has no effect with TAEF1, which takes large pictures whole in little memory")
        return
    model.enable_tiling()
    model.tile_sample_min_size, model.tile_latent_min_size = TILE, TILE // DOWNSCALE


def tiny_to_diffusers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """ComfyUI's one-file TAESD names to diffusers', which does not count the decoder's first layer, a clamp. Those that are
    diffusers' already stay as they are."""
    if "decoder.layers.0.weight" in tensors:
        return tensors
    renamed = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "taesd_encoder":
            renamed[f"encoder.layers.{rest}"] = tensor
        elif part == "taesd_decoder":
            index, _, leaf = rest.partition(".")
            renamed[f"decoder.layers.{int(index) - 1}.{leaf}"] = tensor
    return renamed


def _empty(kind: type[Model], sizes: dict[str, Any]) -> Model:
    """Without weights, and without drawing the random ones that diffusers begins with."""
    with torch.device("meta"):
        return kind(**sizes)


def _frozen(model: AutoencoderKL | AutoencoderTiny, device: torch.device) -> Vae:
    if device.type == "cpu":
        model.to(memory_format=torch.channels_last)  # its convolutions take 0.76 (TAEF1) to 0.84 of the time
    return Vae(model.to(device).requires_grad_(False).eval(), device)


def _widths(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Those of the blocks, as the tensors have them, so that smaller relatives load; FLUX's own where pieces are missing."""
    num_blocks = len(FLUX_VAE["block_out_channels"])
    firsts = [f"encoder.down_blocks.{number}.resnets.0.conv1.weight" for number in range(num_blocks)]
    if not all(name in tensors for name in firsts):
        return {}
    return {"block_out_channels": tuple(len(tensors[name]) for name in firsts)}


def _kl_to_diffusers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """FLUX's VAE in the original naming to diffusers', by diffusers' own table; already renamed files pass through."""
    if "encoder.down_blocks.0.resnets.0.conv1.weight" in tensors:
        return tensors
    return convert_ldm_vae_checkpoint(dict(tensors), FLUX_VAE)
