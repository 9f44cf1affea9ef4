"""One optimisation step, on one screen: noise, sigma, x_sigma, predict, target, loss, backward, clip, update."""

from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from . import flow
from .data.batches import Batch, BatchPlan
from .errors import JobError
from .flux.predict import predict_velocity, told_sigma
from .rng import generator


@dataclass(frozen=True)
class Objective:
    """What is trained at which noise levels; see FlowSpec for the meaning of each."""

    sigmoid_scale: float
    shift: float
    guidance: float


def flow_loss(transformer: FluxTransformer2DModel, batch: Batch, objective: Objective, seed: int, number: int) -> Tensor:
    """(B,) float32 losses of micro-batch `number`, a function of the weights, the batch, the seed and the number."""
    device = transformer.device
    random = generator(seed, number, "noise and sigma")
    latent_BCHW = batch.latent_BCHW
    noise_BCHW = torch.randn(latent_BCHW.shape, generator=random)
    sigma_B = flow.sample_sigmas(len(latent_BCHW), objective.sigmoid_scale, objective.shift, random)
    sigma_B = told_sigma(sigma_B, transformer.dtype)
    x_BCHW = flow.add_noise(latent_BCHW, noise_BCHW, sigma_B).to(device)
    prediction = predict_velocity(transformer, x_BCHW, sigma_B, batch.text_BLD, batch.pooled_BP, objective.guidance)
    return flow.mse_per_sample(prediction, flow.velocity(latent_BCHW, noise_BCHW).to(device))


def train_step(
    transformer: FluxTransformer2DModel,
    optimizer: torch.optim.Optimizer,
    plan: BatchPlan,
    objective: Objective,
    *,
    step: int,
    accumulation: int,
    max_grad_norm: float,
    seed: int,
) -> tuple[float, float]:
    """Optimiser step number `step`, counted from 0; returns the mean loss over its samples and the gradient's norm.

    Each sample weighs the same, however the micro-batches divide them, so accumulation equals the large batch. JobError
    before the weights are touched when the loss or the gradient is not finite.
    """
    numbers = range(step * accumulation, (step + 1) * accumulation)
    total_samples = sum(len(plan.indices(number)) for number in numbers)
    loss = torch.zeros((), device=transformer.device)
    for number in numbers:
        losses_B = flow_loss(transformer, plan.batch(number), objective, seed, number)
        share = losses_B.sum() / total_samples
        share.backward()
        loss += share.detach()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if not torch.isfinite(loss + norm):
        names = sorted({name for number in numbers for name in plan.batch(number).names})
        raise JobError(
            f"step {step + 1}: the loss ({loss.item()}) or the gradient's norm ({norm.item()}) is not a number; the weights "
            f"were not touched. Lower learning_rate, or look at these pictures: {', '.join(names)}"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item(), norm.item()
