"""Pictures from the model as it is now: Euler along the flow, with real CFG where it is asked for.

Same seed, same sigmas, same noise at every step of a run and in ComfyUI (its RandomNoise draws the same numbers), so pictures
differ by the adapter alone. The random state of training is not touched.
"""

import logging
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
from ..guidance import guide, similarity
from ..specs.validation import ValidationSpec
from .previews import preview_steps
from .shots import Canvas

TOKENS_AT_ONCE = 4096

ShouldStop = Callable[[], bool]
Progress = Callable[[int, int], None]
Foresee = Callable[[int, int, Tensor], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamplerSettings:
    """Every effective number of the sampler. `shift` 0 goes by the number of tokens. CFG is on above guidance_real 1, from
    step `no_cfg_steps` on, until both predictions are as similar as the threshold, in one pass or two."""

    num_steps: int
    shift: float
    guidance: float
    guidance_real: float
    no_cfg_steps: int = 0
    cfg_threshold: float = 1.0
    cfg_passes: str = "auto"

    @property
    def has_cfg(self) -> bool:
        return self.guidance_real > 1


@dataclass(frozen=True)
class Encoded:
    """What the model is asked: captions, with the mask of `objective.attention_mask`, if any, and the latents to start from."""

    text_BLD: Tensor
    pooled_BP: Tensor
    text_mask_BL: Tensor | None = None
    reference_BCHW: Tensor | None = None


def together(captions: Sequence[Encoded]) -> Encoded:
    """All of them as one batch."""
    masks = [caption.text_mask_BL for caption in captions if caption.text_mask_BL is not None]
    references = [caption.reference_BCHW for caption in captions if caption.reference_BCHW is not None]
    return Encoded(
        torch.cat([caption.text_BLD for caption in captions]),
        torch.cat([caption.pooled_BP for caption in captions]),
        torch.cat(masks) if masks else None,
        torch.cat(references) if references else None,
    )


def sampler_settings(spec: ValidationSpec, flavour: Flavour) -> SamplerSettings:
    """The job's wishes, and the flavour's defaults where it has none."""
    default = flavour.sampler
    return SamplerSettings(
        num_steps=spec.validation_num_inference_steps or default.num_steps,
        shift=default.shift,
        guidance=default.guidance if spec.validation_guidance < 0 else spec.validation_guidance,
        guidance_real=default.guidance_real if spec.validation_guidance_real < 0 else spec.validation_guidance_real,
        no_cfg_steps=spec.validation_no_cfg_until_timestep,
        cfg_threshold=spec.validation_cfg_threshold,
        cfg_passes=spec.validation_cfg_passes,
    )


def prompts_at_once(settings: SamplerSettings, num_tokens: int) -> int:
    """As many prompts are sampled together, of so many image tokens each, references included; each twice with real CFG. One
    where CFG ends by what the picture itself shows."""
    return 1 if settings.has_cfg and settings.cfg_threshold < 1 else max(1, TOKENS_AT_ONCE // num_tokens)


def latent_size(canvas: Canvas) -> tuple[int, int, int]:
    """Of a picture on it: channels, height, width."""
    return (LATENT_CHANNELS, canvas.height // DOWNSCALE, canvas.width // DOWNSCALE)


@torch.no_grad()
def sample_latents(
    transformer: FluxTransformer2DModel,
    prompts: Sequence[Encoded],
    negatives: Sequence[Encoded],
    settings: SamplerSettings,
    canvas: Canvas,
    should_stop: ShouldStop = lambda: False,
    progress: Progress = lambda done, total: None,
    foresee: Foresee = lambda first, step, latents: None,
) -> Tensor | None:
    """(number of prompts, 16, H, W) float32 on the CPU, or None when a stop was wished for. A negative for each prompt.

    All prompts start from the same noise, and from references of one size or none; a negative has that of its prompt. As many
    are sampled at once as have the tokens of one 1024 px picture.
    `foresee` is told, after some steps, the number of the batch's first prompt, the step's, and what the model foresees.
    """
    noise = torch.randn((1, *latent_size(canvas)), generator=torch.Generator("cpu").manual_seed(canvas.seed))
    sigmas = sampling_schedule(settings.num_steps, settings.shift or dynamic_shift(canvas.num_tokens))
    at_once = prompts_at_once(settings, canvas.num_tokens + _reference_tokens(prompts[0]))
    total = len(prompts) * settings.num_steps
    latents, previewed = [], preview_steps(settings.num_steps)
    for start in range(0, len(prompts), at_once):
        part = slice(start, start + at_once)
        guided = Guided(transformer, prompts[part], negatives[part], settings, sigmas)
        x = noise.expand(len(prompts[part]), -1, -1, -1)
        for number, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
            if should_stop():
                return None
            progress(start * settings.num_steps + number * len(x), total)
            velocity = guided.velocity(x, sigma, number)
            if number in previewed:
                foresee(start, number, x - sigma * velocity)
            x = euler_step(x, velocity, sigma, next_sigma)
        latents.append(x)
        if guided.num_saved:
            log.info("real CFG was left out in %d of %d steps", guided.num_saved, settings.num_steps)
    progress(total, total)
    return torch.cat(latents)


def _reference_tokens(asked: Encoded) -> int:
    return 0 if asked.reference_BCHW is None else asked.reference_BCHW[0, 0].numel() // 4


class Guided:
    """The prediction for some prompts along one run of the sampler, with real CFG where it is on."""

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        prompts: Sequence[Encoded],
        negatives: Sequence[Encoded],
        settings: SamplerSettings,
        sigmas: Tensor,
    ):
        self._transformer = transformer
        self._settings = settings
        self._prompts = together(prompts)
        self._negatives = together(negatives)
        self._ended = False
        self._in_one_pass = settings.cfg_passes != "two"
        self.num_saved = 0  # steps that went without CFG because it had ended
        self._pair = together([self._prompts, self._negatives])
        passes = [self._conditions(asked, sigma) for step, sigma in enumerate(sigmas[:-1]) for asked in self._asked(step)]
        look_ahead(transformer, passes, "pictures")

    def velocity(self, x: Tensor, sigma: Tensor, step: int) -> Tensor:
        """(B, 16, H, W) on the CPU, at step number `step` of the schedule."""
        settings = self._settings
        self.num_saved += self._ended
        if self._ended or not self._has_cfg(step):
            return self._predict(self._prompts, x, sigma)
        conditional, unconditional = self._both(x, sigma)
        if settings.cfg_threshold < 1:
            self._ended = similarity(x - sigma * conditional, x - sigma * unconditional) >= settings.cfg_threshold
        return guide(conditional, unconditional, settings.guidance_real)

    def _has_cfg(self, step: int) -> bool:
        return self._settings.has_cfg and step >= self._settings.no_cfg_steps

    def _asked(self, step: int) -> list[Encoded]:
        """What each pass of a step is asked with, as long as CFG has not ended."""
        if not self._has_cfg(step):
            return [self._prompts]
        return [self._pair] if self._in_one_pass else [self._prompts, self._negatives]

    def _both(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The conditional and the unconditional prediction: in one pass, until the card has no room for it."""
        if self._in_one_pass:
            try:
                conditional, unconditional = self._predict(self._pair, torch.cat([x, x]), sigma).chunk(2)
                return conditional, unconditional
            except torch.OutOfMemoryError:
                if self._settings.cfg_passes == "one":
                    raise
                log.warning("the card has no room for real CFG in one pass; the pictures are made with two")
                self._in_one_pass = False
        return self._predict(self._prompts, x, sigma), self._predict(self._negatives, x, sigma)

    def _predict(self, asked: Encoded, x: Tensor, sigma: Tensor) -> Tensor:
        sigma_B, guidance_B, pooled_BP = self._conditions(asked, sigma)
        return predict_velocity(
            self._transformer, x, sigma_B, asked.text_BLD, pooled_BP, guidance_B, asked.text_mask_BL, asked.reference_BCHW
        ).cpu()

    def _conditions(self, asked: Encoded, sigma: Tensor) -> Conditions:
        """Noise level, guidance and pooled text of one pass."""
        B = len(asked.pooled_BP)
        return Conditions(sigma.expand(B), torch.full((B,), self._settings.guidance), asked.pooled_BP)
