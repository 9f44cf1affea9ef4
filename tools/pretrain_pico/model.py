"""The small FLUX itself: its shape, its latents as tokens, one prediction, and sampling with real guidance.

sigma 0 is the picture, 1 is noise; x_sigma = (1 - sigma) x + sigma eps; the network predicts eps - x.
Shapes: B batch, C 16 latent channels, H W latent rows and columns, T = H/2 * W/2 image tokens, L text tokens, D = 64.
"""

from __future__ import annotations

import itertools

import torch
from diffusers import FluxTransformer2DModel

from . import files, text

GUIDANCE = 2.5  # what the guidance embedder is told at sampling: the middle of the values seen in training


def new_transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=128,
        num_attention_heads=2,
        joint_attention_dim=text.t5_config().d_model,
        pooled_projection_dim=text.clip_config().hidden_size,
        axes_dims_rope=(16, 56, 56),
        guidance_embeds=True,
    )


def pack(latent_BCHW: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B, T, 4C]: a token is two by two latents, in the order channel, row, column."""
    batch, channels, height, width = latent_BCHW.shape
    cut = latent_BCHW.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, channels * 4)


def unpack(token_BTD: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of pack, for height x width latents."""
    batch, _, depth = token_BTD.shape
    cut = token_BTD.reshape(batch, height // 2, width // 2, depth // 4, 2, 2)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(batch, depth // 4, height, width)


def image_ids(height: int, width: int, device: torch.device) -> torch.Tensor:
    """[T, 3]: (0, row, column) of each token of height x width latents."""
    rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float().to(device)


def predict(
    transformer: torch.nn.Module,
    x_sigma_BTD: torch.Tensor,
    sigma_B: torch.Tensor,
    guidance_B: torch.Tensor,
    sequence_BLD: torch.Tensor,
    pooled_BP: torch.Tensor,
    image_ids_T3: torch.Tensor,
) -> torch.Tensor:
    """The velocity eps - x [B, T, 64] that the network sees in x_sigma."""
    return transformer(
        hidden_states=x_sigma_BTD,
        encoder_hidden_states=sequence_BLD,
        pooled_projections=pooled_BP,
        timestep=sigma_B,
        guidance=guidance_B,
        img_ids=image_ids_T3,
        txt_ids=torch.zeros(sequence_BLD.shape[1], 3, device=x_sigma_BTD.device),
        return_dict=False,
    )[0]


def schedule(num_steps: int, shift: float) -> torch.Tensor:
    """num_steps + 1 sigmas from 1 to 0, moved towards noise by shift."""
    sigma = torch.linspace(1.0, 0.0, num_steps + 1)
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)


@torch.no_grad()
def sample(
    transformer: torch.nn.Module,
    encoders: text.TextEncoders,
    ids_BL: torch.Tensor,
    noise_BCHW: torch.Tensor,
    settings: dict[str, float],
) -> torch.Tensor:
    """Latents [B, C, H, W] by Euler steps with real guidance: uncond + cfg * (cond - uncond), uncond being ''.

    settings are those of recommended.json: steps, shift, cfg and guidance.
    """
    height, width = noise_BCHW.shape[2:]
    device = noise_BCHW.device
    empty = torch.zeros_like(ids_BL)
    empty[:, 0] = text.clip_config().eos_token_id
    sequence, pooled = encoders(torch.cat([ids_BL, empty]))
    guidance = torch.full((2 * len(ids_BL),), float(settings["guidance"]), device=device)
    x, ids = pack(noise_BCHW), image_ids(height, width, device)
    sigmas = schedule(int(settings["steps"]), settings["shift"]).tolist()
    for sigma, following in itertools.pairwise(sigmas):
        with files.in_bf16(device):
            both = torch.cat([x, x])
            sigma_B = torch.full((len(both),), sigma, device=device)
            velocity = predict(transformer, both, sigma_B, guidance, sequence, pooled, ids).float()
        with_words, without = velocity.chunk(2)
        x = x + (following - sigma) * (without + settings["cfg"] * (with_words - without))
    return unpack(x, height, width)
