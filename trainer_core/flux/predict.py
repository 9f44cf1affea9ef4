"""One forward pass of FLUX on latents: the seam between float32 maths and the model's own number format."""

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from .latents import image_ids, pack, text_ids, unpack


def predict_velocity(
    transformer: FluxTransformer2DModel,
    x_BCHW: Tensor,
    sigma_B: Tensor,
    text_BLD: Tensor,
    pooled_BP: Tensor,
    guidance_B: Tensor,
    text_mask_BL: Tensor | None = None,
    reference_BCHW: Tensor | None = None,
) -> Tensor:
    """(B, 16, H, W) float32. `guidance_B` is the raw value; it is fed only where the model has the embedder.

    `text_mask_BL` as `joint_mask` takes it; None leaves attention as it is. `reference_BCHW` are the latents, of any size, of
    what the pictures start from: their tokens follow the picture's own, and what the model says of them is left out.
    """
    _, _, H, W = x_BCHW.shape
    tokens_BSD, ids_S3 = pack(x_BCHW), image_ids(H, W)
    S = tokens_BSD.shape[1]
    if reference_BCHW is not None:
        tokens_BSD = torch.cat([tokens_BSD, pack(reference_BCHW)], dim=1)
        ids_S3 = torch.cat([ids_S3, image_ids(*reference_BCHW.shape[2:], is_reference=True)])
    embedder = transformer.x_embedder.weight  # transformer.device and .dtype look at every module: milliseconds each
    device, dtype = embedder.device, embedder.dtype
    conditions = transformer.time_text_embed.timestep_embedder.linear_1.weight.device  # the host, where modulation stays there
    mask = None if text_mask_BL is None else joint_mask(text_mask_BL, tokens_BSD.shape[1])
    if mask is not None and mask.is_floating_point():
        mask = mask.to(dtype)  # attention adds it to logits of this format
    predicted_BSD = transformer(
        hidden_states=tokens_BSD.to(device, dtype),
        encoder_hidden_states=text_BLD.to(device, dtype),
        pooled_projections=pooled_BP.to(conditions, dtype),
        timestep=sigma_B.to(conditions),
        guidance=guidance_B.to(conditions) if transformer.config.guidance_embeds else None,
        img_ids=ids_S3.to(device),
        txt_ids=text_ids(text_BLD.shape[1]).to(device),
        joint_attention_kwargs=None if mask is None else {"attention_mask": mask.to(device)},
        return_dict=False,
    )[0]
    return unpack(predicted_BSD[:, :S].float(), H, W)


def joint_mask(text_mask_BL: Tensor, num_tokens: int) -> Tensor:
    """(B, 1, 1, L + S): the mask over text and image tokens that every block's attention gets, on the side of the keys.

    As torch reads masks: bool hides the keys that are false from every query, float is added to the logits. Image tokens, and
    those of a reference among them, count as words, 1. Without the float kind's bonus for them, words would draw attention
    away from the image.
    """
    image_BS = text_mask_BL.new_ones(len(text_mask_BL), num_tokens)
    return torch.cat([text_mask_BL, image_BS], dim=1)[:, None, None, :]


def told_sigma(sigma_B: Tensor, dtype: torch.dtype) -> Tensor:
    """The sigma that a model of this number format is really told.

    diffusers rounds sigma * 1000 to the model's format, in bfloat16 to steps of 4 near 1. Training noises the latent with
    exactly this value, so that the noise level and what the model is told of it agree.
    """
    return (sigma_B.to(dtype) * 1000).float() / 1000
