"""One optimisation step, on one screen: noise, sigma, x_sigma, predict, target, loss, backward, clip, update."""

from collections.abc import Callable, Sequence

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn import Parameter

from . import flow
from .adapter.dropout import seed_dropouts
from .data.batches import Batch, BatchPlan
from .errors import JobError
from .flux.predict import predict_velocity
from .flux.routing import TokenRouter
from .objective import Objective
from .rng import generator
from .tread import Span, draw_kept

Clip = Callable[[list[Parameter]], Tensor]


def flow_loss(
    transformer: FluxTransformer2DModel, batch: Batch, objective: Objective, router: TokenRouter, *, step: int, first: int
) -> Tensor:
    """(B,) float32 losses. `first` is the position of the batch's first sample among those of the step: what is drawn
    belongs to the sample, however the step is divided into batches."""
    seed_dropouts(transformer, step=step, first=first)
    draw = objective.draw(batch.latent_BCHW, step, first)
    x_BCHW = flow.add_noise(batch.latent_BCHW, draw.input_noise_BCHW, draw.sigma_B)
    with router.routed(draw_routes(router.spans, batch, objective.seed, step, first)):
        prediction = predict_velocity(transformer, x_BCHW, draw.sigma_B, batch.text_BLD, batch.pooled_BP, draw.guidance_B)
    target = flow.velocity(batch.latent_BCHW, draw.noise_BCHW).to(prediction.device)
    return objective.losses(prediction, target, draw.sigma_B)


def draw_routes(spans: Sequence[Span], batch: Batch, seed: int, step: int, first: int) -> list[Tensor]:
    """(B, K) kept image tokens for each route; every sample keeps others."""
    num_tokens, positions = batch.latent_BCHW[0, 0].numel() // 4, range(first, first + len(batch.names))
    return [
        draw_kept(num_tokens, span.ratio, [generator(seed, step, f"route {number} of sample {p}") for p in positions])
        for number, span in enumerate(spans)
    ]


def train_step(
    transformer: FluxTransformer2DModel,
    optimizer: torch.optim.Optimizer,
    plan: BatchPlan,
    objective: Objective,
    router: TokenRouter,
    clip: Clip,
    *,
    step: int,
    accumulation: int,
) -> tuple[float, float]:
    """Optimiser step number `step`, counted from 0; returns the mean loss over its samples and the gradient's norm.

    Each sample weighs the same, however the micro-batches divide them, so accumulation equals the large batch. JobError
    before the weights are touched when the loss or the gradient is not finite.
    """
    batches = [plan.batch(number) for number in range(step * accumulation, (step + 1) * accumulation)]
    num_samples = sum(len(batch.names) for batch in batches)
    loss, first = torch.zeros((), device=transformer.device), 0
    for batch in batches:
        losses_B = flow_loss(transformer, batch, objective, router, step=step, first=first)
        share = losses_B.sum() / num_samples
        share.backward()
        loss += share.detach()
        first += len(losses_B)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = clip(parameters)
    if not torch.isfinite(loss + norm):
        names = sorted({name for batch in batches for name in batch.names})
        raise JobError(
            f"step {step + 1}: the loss ({loss.item()}) or the gradient's norm ({norm.item()}) is not a number; the weights "
            f"were not touched. Lower learning_rate, or look at these pictures: {', '.join(names)}"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item(), norm.item()
