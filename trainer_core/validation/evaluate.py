"""The held-out loss: a figure that can be compared from step to step, and from run to run.

The training loss jumps about because each step draws other samples, noise and noise levels. Here they are always the same: a
fixed choice of pictures of each eval dataset, for each picture the same noise, and the middles of equal parts of 0 to 1 as
noise levels. So two evaluations differ by the adapter alone. The error is squared whatever loss is trained, over whole pictures
unless `eval_masked` is on. The caption is never dropped, no token is left out, the random state of training is not touched.
"""

from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from .. import flow
from ..data.batches import Visit, read_batch
from ..data.encode import Caches
from ..data.sample import Sample
from ..flux.modulation import Conditions, look_ahead
from ..flux.predict import predict_velocity, told_sigma
from ..history import History
from ..objective import attention_mask
from ..processes import ALONE, Group
from ..rng import generator
from ..setup import Setup
from .sample import TOKENS_AT_ONCE

RISES = 3  # evaluations in a row


ByDataset = dict[str, dict[str, float]]
Progress = Callable[[int, int], None]
ShouldStop = Callable[[], bool]


def evaluate(
    setup: Setup,
    transformer: FluxTransformer2DModel,
    caches: Caches,
    progress: Progress,
    should_stop: ShouldStop,
    group: Group = ALONE,
) -> ByDataset | None:
    """{dataset: {sigma: mean loss}} of the transformer as it is now; None after a wish to stop. Processes share the samples,
    and come to the same figures as one would."""
    spec = setup.job.validation
    chosen = choose(setup.eval_samples, spec.num_eval_images)
    sigmas = (torch.arange(spec.eval_timesteps) + 0.5) / spec.eval_timesteps
    losses = torch.zeros(len(chosen), len(sigmas))
    transformer.eval()
    for number in group.mine(len(chosen)):
        if should_stop() and not group.in_step:
            break
        progress(number, len(chosen))
        losses[number] = losses_of(setup, transformer, chosen[number], caches, sigmas)
    if group.any(should_stop())[0]:
        return None
    group.collect(losses)
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(len(sigmas)))
    for sample, own in zip(chosen, losses, strict=True):
        sums[sample.dataset_id] += own
    progress(len(chosen), len(chosen))
    counts = {name: sum(sample.dataset_id == name for sample in chosen) for name in sums}
    return {
        name: {f"{sigma:.4g}": loss / counts[name] for sigma, loss in zip(sigmas.tolist(), total.tolist(), strict=True)}
        for name, total in sums.items()
    }


def mean_loss(by_dataset: ByDataset) -> float:
    """The one figure of an evaluation: each dataset counts alike, and each noise level."""
    losses = [loss for by_sigma in by_dataset.values() for loss in by_sigma.values()]
    return sum(losses) / len(losses)


def choose(samples: tuple[Sample, ...], most: int) -> list[Sample]:
    """At most so many of each dataset, evenly spread over it."""
    by_dataset: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_dataset[sample.dataset_id].append(sample)
    return [
        some[number * len(some) // min(most, len(some))]
        for some in by_dataset.values()
        for number in range(min(most, len(some)))
    ]


def overfitting(history: History) -> str:
    """What to tell where the held-out loss has risen at RISES evaluations in a row, and at as many again, while the training
    loss fell; else nothing."""
    rises = 0
    for earlier, later in pairwise(history.evaluations):
        rises = rises + 1 if later.loss > earlier.loss else 0
    if rises == 0 or rises % RISES:
        return ""
    last = history.evaluations[-RISES - 1 :]
    first, final = last[0].step, last[-1].step
    span = max(1, (final - first) // 2)
    early, late = (
        sum(part) / len(part) for part in (history.losses[first : first + span], history.losses[final - span : final])
    )
    if late >= early:
        return ""
    return (
        f"from step {first} to {final} the held-out loss rose ({last[0].loss:.4f} to {last[-1].loss:.4f}) while the training "
        f"loss fell ({early:.4f} to {late:.4f}): the pictures are being learned by heart. The best so far is step "
        f"{history.best.step if history.best else first}; fewer steps, a lower rank or more pictures would help"
    )


@torch.no_grad()
def losses_of(setup: Setup, transformer: FluxTransformer2DModel, sample: Sample, caches: Caches, sigmas: Tensor) -> Tensor:
    """(number of sigmas,) float32 on the CPU: the squared error of one sample at each noise level, under one noise."""
    batch = read_batch([Visit(sample, sample.caption)], caches)
    # by the file's name and not by its place, so that a picture more does not change the noise of the others
    noise = torch.randn(batch.latent_BCHW.shape, generator=generator(setup.job.validation.validation_seed, 0, sample.path.name))
    target = flow.velocity(batch.latent_BCHW, noise)
    at_once = max(1, TOKENS_AT_ONCE // (batch.num_tokens + batch.num_reference_tokens))
    guidance, text_mask = torch.tensor(setup.flow.flux_guidance_value), attention_mask(setup.flow, batch.text_mask_BL)
    losses, chunks = [], told_sigma(sigmas, setup.dtype).split(at_once)
    passes = [Conditions(chunk, guidance.expand(len(chunk)), batch.pooled_BP.expand(len(chunk), -1)) for chunk in chunks]
    look_ahead(transformer, passes, "evaluation")
    for chunk in chunks:
        B = len(chunk)
        x = flow.add_noise(batch.latent_BCHW.expand(B, -1, -1, -1), noise.expand(B, -1, -1, -1), chunk)
        text, pooled = batch.text_BLD.expand(B, -1, -1), batch.pooled_BP.expand(B, -1)
        mask = None if text_mask is None else text_mask.expand(B, -1)
        reference = None if batch.reference_BCHW is None else batch.reference_BCHW.expand(B, -1, -1, -1)
        prediction = predict_velocity(transformer, x, chunk, text, pooled, guidance.expand(B), mask, reference)
        weight = None if batch.weight_BHW is None else batch.weight_BHW.expand(B, -1, -1)
        losses.append(flow.mean_per_sample((prediction.cpu() - target).square(), weight))
    return torch.cat(losses)
