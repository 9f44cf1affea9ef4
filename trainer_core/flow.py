"""Rectified flow, as pure functions: one convention, written once.

    sigma = 0 is the image, sigma = 1 is noise
    x_sigma = (1 - sigma) * latent + sigma * noise
    the model predicts the velocity noise - latent, so  d x_sigma / d sigma = noise - latent

Lipman et al. 2023 (arXiv 2210.02747) eq. 22 with time reversed; the logit-normal sigmas and the shift are those of
Esser et al. 2024 (arXiv 2403.03206) eqs. 19 and 23.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# schnell's few steps, as SimpleTuner's flux_fast_schedule draws them
FAST_SIGMAS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25)


def sigmoid_sigma(generator: torch.Generator, scale: float) -> Tensor:
    """() float32 in (0, 1): sigmoid(scale * normal), the logit-normal density."""
    return torch.sigmoid(scale * torch.randn((), generator=generator))


def uniform_sigma(generator: torch.Generator) -> Tensor:
    """() float32 in [0, 1)."""
    return torch.rand((), generator=generator)


def beta_sigma(generator: torch.Generator, alpha: float, beta: float) -> Tensor:
    """() float32 in (0, 1) of a Beta density; drawn by numpy, since torch's takes no generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.tensor(np.random.default_rng(seed).beta(alpha, beta), dtype=torch.float32)


def listed_sigma(generator: torch.Generator, sigmas: Sequence[float]) -> Tensor:
    """() float32: one of the list, each place as likely as the others."""
    return torch.tensor(sigmas[int(torch.randint(len(sigmas), (), generator=generator))])


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


def huber_width(sigma_B: Tensor, c: float, schedule: str) -> Tensor:
    """(B,) the error at which Huber's loss turns from square to linear.

    constant: c. exponential: c ** sigma, from 1 at the image to c at noise. snr: from 1 to c with the square of the signal's
    share, (1 - c)(1 - sigma)^2 + c.
    """
    return {
        "constant": torch.full_like(sigma_B, c),
        "exponential": c**sigma_B,
        "snr": (1 - c) * (1 - sigma_B).square() + c,
    }[schedule]


def l2_loss(difference: Tensor, width: Tensor) -> Tensor:
    """The squared error, element by element; the width has no part in it."""
    return difference.square()


def huber_loss(difference: Tensor, width: Tensor) -> Tensor:
    """Pseudo-Huber: about the square of small errors, 2 * width * error for large ones."""
    return width * smooth_l1_loss(difference, width)


def smooth_l1_loss(difference: Tensor, width: Tensor) -> Tensor:
    """Pseudo-Huber over its width: about twice the absolute value of large errors, whatever the width.

    2 (sqrt(d^2 + w^2) - w), written without the difference of two near numbers, which would lose small errors to rounding.
    """
    square = difference.square()
    both = (square + width.square()).sqrt() + width
    return 2 * square / both.clamp_min(torch.finfo(both.dtype).tiny)


def mask_weight(mask_HW: Tensor, background: float, normalise_area: bool) -> Tensor:
    """How much each cell of the latent counts: 1 where the mask is white, `background` where it is black.

    Normalised, the weights have mean 1, so that a small subject teaches as much as a large one.
    """
    weight_HW = background + (1 - background) * mask_HW
    return weight_HW / weight_HW.mean() if normalise_area else weight_HW


def mean_per_sample(loss_BCHW: Tensor, weight_BHW: Tensor | None = None) -> Tensor:
    """(B,) averaged over everything but the batch, weighted cell by cell where there are weights."""
    if weight_BHW is not None:
        loss_BCHW = loss_BCHW * weight_BHW.unsqueeze(1)
    return loss_BCHW.flatten(1).mean(dim=1)
