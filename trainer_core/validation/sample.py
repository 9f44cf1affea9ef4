"""Pictures from the model as it is now: Euler along the flow, with real CFG where it is asked for.

Same seed, same sigmas, same noise at every step of a run and in ComfyUI (its RandomNoise draws the same numbers), so pictures
differ by the adapter alone. The random state of training is not touched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from ..flow import dynamic_shift, euler_step, sampling_schedule
from ..flux.flavours import Flavour
from ..flux.modulation import Conditions, look_ahead
from ..flux.predict import predict_velocity
from ..flux.vae import DOWNSCALE, LATENT_CHANNELS
from ..specs.validation import ValidationSpec, parse_size

TOKENS_AT_ONCE = 4096

ShouldStop = Callable[[], bool]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SamplerSettings:
    """Every effective number of the sampler; width and height in pixels. CFG is on above guidance_real 1."""

    width: int
    height: int
    num_steps: int
    shift: float
    guidance: float
    guidance_real: float
    seed: int

    @property
    def num_tokens(self) -> int:
        """Image tokens of one picture."""
        return (self.width // (2 * DOWNSCALE)) * (self.height // (2 * DOWNSCALE))


@dataclass(frozen=True)
class Encoded:
    """Captions as the model takes them; the mask, if any, is that of `objective.attention_mask`."""

    text_BLD: Tensor
    pooled_BP: Tensor
    text_mask_BL: Tensor | None = None


def together(captions: Sequence[Encoded]) -> Encoded:
    """All of them as one batch."""
    masks = [caption.text_mask_BL for caption in captions if caption.text_mask_BL is not None]
    return Encoded(
        torch.cat([caption.text_BLD for caption in captions]),
        torch.cat([caption.pooled_BP for caption in captions]),
        torch.cat(masks) if masks else None,
    )


def sampler_settings(spec: ValidationSpec, flavour: Flavour) -> SamplerSettings:
    """The job's wishes, and the flavour's defaults where it has none."""
    default = flavour.sampler
    home = flavour.home_resolution
    width, height = parse_size(spec.validation_resolution) if spec.validation_resolution else (home, home)
    num_tokens = (width // (2 * DOWNSCALE)) * (height // (2 * DOWNSCALE))
    return SamplerSettings(
        width=width,
        height=height,
        num_steps=spec.validation_num_inference_steps or default.num_steps,
        shift=default.shift or dynamic_shift(num_tokens),
        guidance=default.guidance if spec.validation_guidance < 0 else spec.validation_guidance,
        guidance_real=default.guidance_real if spec.validation_guidance_real < 0 else spec.validation_guidance_real,
        seed=spec.validation_seed,
    )


def prompts_at_once(settings: SamplerSettings) -> int:
    """As many prompts are sampled together; with real CFG each is there twice."""
    return max(1, TOKENS_AT_ONCE // settings.num_tokens)


@torch.no_grad()
def sample_latents(
    transformer: FluxTransformer2DModel,
    prompts: list[Encoded],
    negative: Encoded,
    settings: SamplerSettings,
    should_stop: ShouldStop = lambda: False,
    progress: Progress = lambda done, total: None,
) -> Tensor | None:
    """(number of prompts, 16, H, W) float32 on the CPU, or None when a stop was wished for.

    All prompts start from the same noise. They are sampled as many at once as have the tokens of one 1024 px picture.
    """
    size = (1, LATENT_CHANNELS, settings.height // DOWNSCALE, settings.width // DOWNSCALE)
    noise = torch.randn(size, generator=torch.Generator("cpu").manual_seed(settings.seed))
    sigmas = sampling_schedule(settings.num_steps, settings.shift)
    at_once = prompts_at_once(settings)
    latents = []
    for start in range(0, len(prompts), at_once):
        chunk = prompts[start : start + at_once]
        x = noise.expand(len(chunk), -1, -1, -1)
        look_ahead(transformer, [_conditions(sigma, chunk, negative, settings) for sigma in sigmas[:-1]], "pictures")
        for number, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
            if should_stop():
                return None
            progress(start * settings.num_steps + number * len(chunk), len(prompts) * settings.num_steps)
            prediction = _guided_velocity(transformer, x, sigma, chunk, negative, settings)
            x = euler_step(x, prediction.cpu(), sigma, next_sigma)
        latents.append(x)
    progress(len(prompts) * settings.num_steps, len(prompts) * settings.num_steps)
    return torch.cat(latents)


def _guided_velocity(
    transformer: FluxTransformer2DModel,
    x: Tensor,
    sigma: Tensor,
    prompts: list[Encoded],
    negative: Encoded,
    settings: SamplerSettings,
) -> Tensor:
    """The predicted velocity, with real CFG in one pass of twice the batch where it is on."""
    sigma_B, guidance_B, pooled_BP = _conditions(sigma, prompts, negative, settings)
    text = _asked(prompts, negative, settings)
    if settings.guidance_real <= 1:
        return predict_velocity(transformer, x, sigma_B, text.text_BLD, pooled_BP, guidance_B, text.text_mask_BL)
    x = torch.cat([x, x])
    both = predict_velocity(transformer, x, sigma_B, text.text_BLD, pooled_BP, guidance_B, text.text_mask_BL)
    positive, unconditional = both.chunk(2)
    return unconditional + settings.guidance_real * (positive - unconditional)


def _asked(prompts: list[Encoded], negative: Encoded, settings: SamplerSettings) -> Encoded:
    """What one pass is asked with: the prompts, and with real CFG the negative prompt for each."""
    return together(prompts if settings.guidance_real <= 1 else [*prompts, *[negative] * len(prompts)])


def _conditions(sigma: Tensor, prompts: list[Encoded], negative: Encoded, settings: SamplerSettings) -> Conditions:
    """Noise level, guidance and pooled text of that pass."""
    pooled_BP = _asked(prompts, negative, settings).pooled_BP
    B = len(pooled_BP)
    return Conditions(sigma.expand(B), torch.full((B,), settings.guidance), pooled_BP)
