"""What is asked of the model: at which noise levels, told which guidance, and how its error is counted.

An `Objective` is made once from the job; it draws and judges, and nothing in it changes. All that a sample draws comes from
that sample's own generator, in a fixed order: noise, sigma, guidance, perturbation. So a sample's part in a step does not
depend on the batch that it is in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from . import flow, rng
from .flux.predict import told_sigma
from .specs.flow import FlowSpec

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2": flow.l2_loss,
    "huber": flow.huber_loss,
    "smooth_l1": flow.smooth_l1_loss,
}


@dataclass(frozen=True)
class Draw:
    """The random part of a batch. The latent is noised with `input_noise`, the target made from `noise`."""

    noise_BCHW: Tensor
    input_noise_BCHW: Tensor
    sigma_B: Tensor
    guidance_B: Tensor


@dataclass(frozen=True)
class Objective:
    """`dtype` is the base's number format: sigma is drawn as the base can be told it."""

    spec: FlowSpec
    dtype: torch.dtype
    seed: int

    def draw(self, latent_BCHW: Tensor, step: int, first: int) -> Draw:
        """Noise, sigma and guidance for samples number `first` and on of this step; float32, on the CPU."""
        size, num_tokens = latent_BCHW.shape[1:], latent_BCHW.shape[2] * latent_BCHW.shape[3] // 4
        perturbation = self._perturbation(step)
        noise, sigmas, guidance, input_noise = [], [], [], []
        for position in range(first, first + len(latent_BCHW)):
            generator = rng.generator(self.seed, step, f"sample {position}")
            noise.append(torch.randn(size, generator=generator))
            sigmas.append(draw_sigma(self.spec, num_tokens, generator))
            guidance.append(draw_guidance(self.spec, generator))
            extra = perturbation * torch.randn(size, generator=generator) if perturbation else 0.0
            input_noise.append(noise[-1] + extra)
        sigma_B = told_sigma(torch.stack(sigmas), self.dtype)
        return Draw(torch.stack(noise), torch.stack(input_noise), sigma_B, torch.stack(guidance))

    def losses(self, prediction_BCHW: Tensor, target_BCHW: Tensor, sigma_B: Tensor, weight_BHW: Tensor | None = None) -> Tensor:
        """(B,) float32: the error of each sample; the weights are those of masks, None where all cells count alike."""
        width = flow.huber_width(sigma_B, self.spec.huber_c, self.spec.huber_schedule).view(-1, 1, 1, 1)
        difference = prediction_BCHW.float() - target_BCHW.float()
        errors_BCHW = LOSSES[self.spec.loss_type](difference, width.to(difference.device))
        return flow.mean_per_sample(errors_BCHW, None if weight_BHW is None else weight_BHW.to(difference.device))

    def _perturbation(self, step: int) -> float:
        """Share of extra noise on the input at this step: falls to 0 over input_perturbation_steps, if that is set."""
        decay = self.spec.input_perturbation_steps
        return self.spec.input_perturbation * (max(0.0, 1 - step / decay) if decay else 1.0)


def draw_sigma(spec: FlowSpec, num_tokens: int, generator: Generator) -> Tensor:
    """() float32: a noise level by the job's density, shifted where the density is one that shifts."""
    sigma = _density(spec)(generator)
    if spec.flow_custom_timesteps or spec.flux_fast_schedule:
        return sigma
    shift = flow.dynamic_shift(num_tokens) if spec.flow_schedule_auto_shift else spec.flow_schedule_shift
    return flow.shift_sigmas(sigma, shift) if shift else sigma


def draw_guidance(spec: FlowSpec, generator: Generator) -> Tensor:
    """() float32: the guidance that the base is told."""
    if spec.flux_guidance_mode == "constant":
        return torch.tensor(spec.flux_guidance_value)
    low, high = spec.flux_guidance_min, spec.flux_guidance_max
    return low + (high - low) * torch.rand((), generator=generator)


def attention_mask(spec: FlowSpec, text_mask_BL: Tensor) -> Tensor | None:
    """What `predict_velocity` is to be given of the text's mask: bool hides the padding, float adds to the logits of the
    words, None leaves attention as FLUX.1 was trained. Pictures are sampled with the same."""
    if not spec.flux_attention_masked_training:
        return None
    return text_mask_BL if spec.t5_mask_mode == "mask" else text_mask_BL.float()


def _density(spec: FlowSpec) -> Callable[[Generator], Tensor]:
    """Which density the job's switches mean; the job has checked that at most one is on."""
    if spec.flow_custom_timesteps:
        return partial(flow.listed_sigma, sigmas=spec.flow_custom_timesteps)
    if spec.flux_fast_schedule:
        return partial(flow.listed_sigma, sigmas=flow.FAST_SIGMAS)
    if spec.flow_use_uniform_schedule:
        return flow.uniform_sigma
    if spec.flow_use_beta_schedule:
        return partial(flow.beta_sigma, alpha=spec.flow_beta_schedule_alpha, beta=spec.flow_beta_schedule_beta)
    return partial(flow.sigmoid_sigma, scale=spec.flow_sigmoid_scale)
