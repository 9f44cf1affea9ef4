"""One optimisation step, on one screen: noise, sigma, x_sigma, predict, target, loss, backward, clip, update.

The target is the flow's velocity; on regularisation samples it is what the base says without the adapter, asked with the
same noisy latent, sigma, guidance and text, and with no tokens left out. That costs these samples one more forward pass.

Several processes share the samples of a step. Each weighs its losses as one process would, so the gradients need only be added
up before the update; the facts of the step travel in the same sum, and the record is the same in all.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn import Parameter

from . import flow
from .adapter.dropout import SeededDropout, seed_dropouts
from .adapter.switch import adapter_off
from .data.batches import Batch, Portion
from .errors import JobError
from .flux.modulation import Conditions
from .flux.predict import predict_velocity
from .flux.routing import TokenRouter
from .objective import Objective, attention_mask
from .processes import ALONE, Group
from .tread import draw_routes


class Update(NamedTuple):
    """How gradients become new weights; `clip` limits them in place and returns the norm that they had."""

    optimizer: torch.optim.Optimizer
    clip: Callable[[list[Parameter]], Tensor]


@dataclass(frozen=True)
class StepRecord:
    """What a step did. `sigmas`, `losses` and `names` have an entry a sample, in their order; `dropped` has one a route."""

    loss: float
    grad_norm: float
    sigmas: tuple[float, ...]
    losses: tuple[float, ...]
    names: tuple[str, ...]
    dropped: tuple[int, ...]  # image tokens that the route left out, of all samples together
    tokens: int  # image tokens in all


class Judged(NamedTuple):
    """A batch after its forward pass."""

    losses_B: Tensor
    sigma_B: Tensor
    dropped: tuple[int, ...]
    tokens: int


def conditions_of(read: Callable[[int], Portion], objective: Objective, steps: range) -> Iterator[Conditions]:
    """What the modulation of each pass of these steps depends on, in the order of the passes."""
    for step in steps:
        for part, batch in read(step).batches:
            draw = objective.draw(batch.latent_BCHW, step, part.first)
            conditions = Conditions(draw.sigma_B, draw.guidance_B, batch.pooled_BP)
            yield conditions
            if batch.regularised:
                yield Conditions(*(value[torch.tensor(batch.regularised)] for value in conditions))


def flow_loss(
    transformer: FluxTransformer2DModel,
    batch: Batch,
    objective: Objective,
    router: TokenRouter,
    dropouts: Sequence[SeededDropout] = (),
    *,
    step: int,
    first: int,
    asks_base: bool = False,
) -> Judged:
    """The float32 loss of each sample. `first` is the position of the batch's first sample among those of the step: what is
    drawn belongs to the sample, however the step is divided into batches. `asks_base`: ask it, if only because others do."""
    seed_dropouts(dropouts, step=step, first=first)
    draw = objective.draw(batch.latent_BCHW, step, first)
    x_BCHW = flow.add_noise(batch.latent_BCHW, draw.input_noise_BCHW, draw.sigma_B)
    text_mask_BL = attention_mask(objective.spec, batch.text_mask_BL)
    inputs = (x_BCHW, draw.sigma_B, batch.text_BLD, batch.pooled_BP, draw.guidance_B, text_mask_BL, batch.reference_BCHW)
    target = flow.velocity(batch.latent_BCHW, draw.noise_BCHW)
    if batch.regularised or asks_base:
        rows = torch.tensor(batch.regularised or (0,))
        with torch.no_grad(), adapter_off(transformer):
            taught = predict_velocity(transformer, *(None if value is None else value[rows] for value in inputs))
        if batch.regularised:
            target = target.index_copy(0, rows, taught.to(target.device))
    positions, tokens = range(first, first + len(batch.names)), len(batch.names) * batch.num_tokens
    kept = draw_routes(router.spans, batch.num_tokens, batch.mask_BHW, objective.seed, step, positions, batch.other_mask_BHW)
    with router.routed(kept, num_routable=None if batch.reference_BCHW is None else batch.num_tokens):
        prediction = predict_velocity(transformer, *inputs)
    losses_B = objective.losses(prediction, target.to(prediction.device), draw.sigma_B, batch.weight_BHW)
    return Judged(losses_B, draw.sigma_B, tuple(0 if ids_BK is None else tokens - ids_BK.numel() for ids_BK in kept), tokens)


def train_step(
    transformer: FluxTransformer2DModel,
    update: Update,
    portion: Portion,
    objective: Objective,
    router: TokenRouter,
    dropouts: Sequence[SeededDropout],
    *,
    step: int,
    group: Group = ALONE,
) -> StepRecord:
    """Optimiser step number `step`, counted from 0, on what this process has of it.

    Each sample weighs the same, however micro-batches and processes divide them, so accumulation equals the large batch.
    JobError before the weights are touched when the loss or the gradient is not finite.
    """
    shares, judged = [], []
    for number, (part, batch) in enumerate(portion.batches):
        at = {"step": step, "first": part.first, "asks_base": number in portion.asking}
        outcome = flow_loss(transformer, batch, objective, router, dropouts, **at)
        share = outcome.losses_B.sum() / len(portion.names)
        if not part.counts:
            (0 * share).backward()
            continue
        share.backward()
        shares.append(share.detach())
        judged.append(outcome._replace(losses_B=outcome.losses_B.detach()))
    parameters = [parameter for group in update.optimizer.param_groups for parameter in group["params"]]
    if group.count > 1:
        record = shared_record(group, portion, judged, parameters, update.clip, num_routes=len(router.spans))
    else:
        record = record_of(portion, judged, torch.stack(shares).sum(), update.clip(parameters))
    if not math.isfinite(record.loss + record.grad_norm):
        raise JobError(explain_not_finite(step, record))
    update.optimizer.step()
    update.optimizer.zero_grad(set_to_none=True)
    return record


def record_of(portion: Portion, judged: list[Judged], loss: Tensor, norm: Tensor) -> StepRecord:
    """The record of a step all of whose samples are judged here."""
    numbers = torch.cat([loss[None], norm.to(loss)[None], *(outcome.losses_B for outcome in judged)]).tolist()
    return StepRecord(
        loss=numbers[0],
        grad_norm=numbers[1],
        sigmas=tuple(sigma for outcome in judged for sigma in outcome.sigma_B.tolist()),
        losses=tuple(numbers[2:]),
        names=portion.names,
        dropped=tuple(map(sum, zip(*(outcome.dropped for outcome in judged), strict=True))),
        tokens=sum(outcome.tokens for outcome in judged),
    )


def shared_record(
    group: Group,
    portion: Portion,
    judged: list[Judged],
    parameters: list[Parameter],
    clip: Callable[[list[Parameter]], Tensor],
    *,
    num_routes: int,
) -> StepRecord:
    """The same of a step that is judged in several processes: their gradients become the sums of all, clipped as one, and what
    each knows of its samples goes with them. float32 holds the counts exactly, up to 16 million tokens a step."""
    N = len(portion.names)
    losses, sigmas, counts = torch.zeros(N), torch.zeros(N), torch.zeros(num_routes + 1)
    for (part, _), outcome in zip(portion.batches, judged, strict=False):  # those that do not count come last
        rows = slice(part.first, part.first + len(outcome.sigma_B))
        losses[rows], sigmas[rows] = outcome.losses_B.cpu(), outcome.sigma_B.cpu()
        counts += torch.tensor([*outcome.dropped, outcome.tokens])
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    facts = torch.cat([losses, sigmas, counts]).to(parameters[0].device)
    group.add_up([*(parameter.grad for parameter in parameters), facts])
    numbers = torch.cat([facts, clip(parameters).to(facts)[None]]).tolist()
    *dropped, tokens = map(int, numbers[2 * N : -1])
    return StepRecord(
        loss=sum(numbers[:N]) / N,
        grad_norm=numbers[-1],
        sigmas=tuple(numbers[N : 2 * N]),
        losses=tuple(numbers[:N]),
        names=portion.names,
        dropped=tuple(dropped),
        tokens=tokens,
    )


def explain_not_finite(step: int, record: StepRecord) -> str:
    """Step, noise levels and pictures: those whose own loss is not finite, or all where only the gradient is not."""
    samples = list(zip(record.names, record.sigmas, record.losses, strict=True))
    wrong = [sample for sample in samples if not math.isfinite(sample[2])] or samples
    lines = "\n".join(f"  {name} at sigma {sigma:.4g}: loss {loss:.4g}" for name, sigma, loss in wrong)
    return (
        f"step {step + 1}: the loss ({record.loss}) or the gradient's norm ({record.grad_norm}) is not a number. The weights "
        f"were not touched and the last checkpoint stays. Lower learning_rate, or look at these pictures:\n{lines}"
    )
