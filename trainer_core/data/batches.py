"""Which samples go into which batch, and the batch itself.

The order is a function of (seed, epoch): all samples, each as often as its dataset's repeats say, are shuffled, grouped by
bucket, cut into batches of one bucket, and the batches shuffled. So batch number i is known without its predecessors, and a
resumed run needs no sampler state. The last batch of a bucket may be smaller; no picture is left out or shown twice.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .. import flow
from ..flux.vae import DOWNSCALE
from ..rng import generator
from ..specs.dataset import DatasetSpec
from .cache import read_entry
from .encode import Caches
from .index import Sample


@dataclass(frozen=True)
class Batch:
    """Samples of one bucket. `names` are the picture files, for messages.

    Where no sample has a mask, `mask_BHW` and `weight_BHW` are None; a sample without one has mask 0 and weight 1.
    """

    latent_BCHW: Tensor
    text_BLD: Tensor
    text_mask_BL: Tensor  # bool, false where the text is padding
    pooled_BP: Tensor
    names: tuple[str, ...]
    mask_BHW: Tensor | None = None  # what the masks mark, 0 to 1
    weight_BHW: Tensor | None = None  # how much each cell of the latent counts
    regularised: tuple[int, ...] = ()  # positions of the samples on which the adapter is to change nothing

    @property
    def num_tokens(self) -> int:
        """Image tokens of each sample."""
        return self.latent_BCHW[0, 0].numel() // 4


class BatchPlan:
    """The batches of a run, by number, of the samples that are trained on.

    `caption_dropout` is the share of captions replaced by the empty one.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        datasets: tuple[DatasetSpec, ...],
        caches: Caches,
        *,
        batch_size: int,
        caption_dropout: float,
        seed: int,
    ):
        passes = {spec.id: 1 + spec.repeats for spec in datasets}
        self._samples = samples
        self._caches = caches
        self._batch_size = batch_size
        self._caption_dropout = caption_dropout
        self._seed = seed
        self._entries = [index for index, sample in enumerate(samples) for _ in range(passes[sample.dataset_id])]
        self._batches_per_epoch = batches_per_epoch(samples, datasets, batch_size)
        self._order = lru_cache(maxsize=2)(self.indices_of_epoch)

    def indices_of_epoch(self, epoch: int) -> list[tuple[int, ...]]:
        """The sample numbers of each batch of this epoch."""
        random = generator(self._seed, epoch, "order of samples")
        by_bucket = defaultdict(list)
        for position in torch.randperm(len(self._entries), generator=random).tolist():
            entry = self._entries[position]
            by_bucket[self._samples[entry].bucket].append(entry)
        chunks = [
            tuple(entries[start : start + self._batch_size])
            for entries in by_bucket.values()
            for start in range(0, len(entries), self._batch_size)
        ]
        return [chunks[position] for position in torch.randperm(len(chunks), generator=random).tolist()]

    def indices(self, number: int) -> tuple[int, ...]:
        """The sample numbers of batch `number`, counted from 0 over the whole run."""
        epoch, position = divmod(number, self._batches_per_epoch)
        return self._order(epoch)[position]

    def batch(self, number: int) -> Batch:
        """Batch `number`, read from the caches, on the CPU."""
        indices = self.indices(number)
        dropped = torch.rand(len(indices), generator=generator(self._seed, number, "caption dropout")) < self._caption_dropout
        captions = ["" if drop else self._samples[i].caption for i, drop in zip(indices, dropped.tolist(), strict=True)]
        return read_batch([self._samples[i] for i in indices], captions, self._caches)


def read_batch(samples: Sequence[Sample], captions: Sequence[str], caches: Caches) -> Batch:
    """These samples of one bucket, each with its caption of `captions`, from the caches; on the CPU."""
    texts = [read_entry(caches.captions[caption]) for caption in captions]
    mask_BHW, weight_BHW = _read_masks(samples, caches)
    return Batch(
        latent_BCHW=torch.stack([read_entry(caches.latents[sample])["latent"] for sample in samples]),
        text_BLD=torch.stack([entry["text"] for entry in texts]),
        text_mask_BL=torch.stack([entry["text_mask"] for entry in texts]),
        pooled_BP=torch.stack([entry["pooled"] for entry in texts]),
        names=tuple(str(sample.path) for sample in samples),
        mask_BHW=mask_BHW,
        weight_BHW=weight_BHW,
        regularised=tuple(position for position, sample in enumerate(samples) if sample.is_regularisation),
    )


def _read_masks(samples: Sequence[Sample], caches: Caches) -> tuple[Tensor | None, Tensor | None]:
    """(B, H, W) what the masks mark, and how much each cell counts; None twice where no sample has a mask."""
    if all(sample.mask is None for sample in samples):
        return None, None
    width, height = (edge // DOWNSCALE for edge in samples[0].bucket)
    masks, weights = [], []
    for sample in samples:
        if sample.mask is None:
            masks.append(torch.zeros(height, width))
            weights.append(torch.ones(height, width))
        else:
            masks.append(read_entry(caches.masks[sample])["mask"])
            weights.append(flow.mask_weight(masks[-1], sample.mask.background_weight, sample.mask.normalise_area))
    return torch.stack(masks), torch.stack(weights)


def batches_per_epoch(samples: Sequence[Sample], datasets: tuple[DatasetSpec, ...], batch_size: int) -> int:
    """How many batches show everything once, repeats included."""
    passes = {spec.id: 1 + spec.repeats for spec in datasets}
    counts = Counter()
    for sample in samples:
        counts[sample.bucket] += passes[sample.dataset_id]
    return sum(math.ceil(count / batch_size) for count in counts.values())
