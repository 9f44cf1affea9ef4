"""Rectified flow, as pure functions: one convention, written once.

    sigma = 0 is the image, sigma = 1 is noise
    x_sigma = (1 - sigma) * latent + sigma * noise
    the model predicts the velocity noise - latent, so  d x_sigma / d sigma = noise - latent

Lipman et al. 2023 (arXiv 2210.02747) eq. 22 with time reversed; the logit-normal sigmas and the shift are those of
Esser et al. 2024 (arXiv 2403.03206) eqs. 19 and 23.
"""

import math

import torch
from torch import Tensor


def sample_sigmas(count: int, scale: float, shift: float, generator: torch.Generator) -> Tensor:
    """(count,) float32 in (0, 1): sigmoid(scale * normal), shifted. `shift` 0 or 1 leaves them as they are."""
    sigmas = torch.sigmoid(scale * torch.randn(count, generator=generator))
    return shift_sigmas(sigmas, shift) if shift else sigmas


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """k s / (1 + (k - 1) s): adds ln k to the logit. 0 and 1 stay where they are."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def dynamic_shift(num_image_tokens: int) -> float:
    """FLUX.1 dev's shift for a picture of so many 2x2-latent tokens: exp of a line from 0.5 at 256 to 1.15 at 4096."""
    slope = (1.15 - 0.5) / (4096 - 256)
    return math.exp(0.5 + slope * (num_image_tokens - 256))


def sampling_schedule(num_steps: int, shift: float) -> Tensor:
    """(num_steps + 1,) float32 sigmas, from 1 down to 0."""
    return shift_sigmas(torch.linspace(1, 0, num_steps + 1), shift)


def add_noise(latent_BCHW: Tensor, noise_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """x_sigma, in float32."""
    sigma = sigma_B.view(-1, 1, 1, 1)
    return (1 - sigma) * latent_BCHW + sigma * noise_BCHW


def velocity(latent_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """What the model is to predict."""
    return noise_BCHW - latent_BCHW


def euler_step(x: Tensor, prediction: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """One step of the sampler along the predicted velocity."""
    return x + (next_sigma - sigma) * prediction


def mse_per_sample(prediction: Tensor, target: Tensor) -> Tensor:
    """(B,) float32: the squared error, averaged over everything but the batch."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
