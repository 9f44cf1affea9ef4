"""A batch of a run, by its number: which samples (`order.py`), which caption and view of each, read from the caches.

All of it is a function of the seed and the number, so batches can be read ahead, again, or after a resume.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import flow
from ..flux.vae import DOWNSCALE
from ..rng import generator
from .encode import Caches
from .order import ALIKE, Mix, Order
from .sample import Sample
from .shares import WHOLE, Part, Share, parts_of


@dataclass(frozen=True)
class Batch:
    """Samples of one bucket, whose references, if they have them, are of one bucket too. `names` are the picture files, for
    messages.

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
    reference_BCHW: Tensor | None = None  # latents of what the pictures start from, of a size of their own
    other_mask_BHW: Tensor | None = None  # the masks of its micro-batch's samples that another process has

    @property
    def num_tokens(self) -> int:
        """Image tokens of each sample; those of its reference do not count."""
        return self.latent_BCHW[0, 0].numel() // 4

    @property
    def num_reference_tokens(self) -> int:
        """Tokens of each sample's reference."""
        return 0 if self.reference_BCHW is None else self.reference_BCHW[0, 0].numel() // 4


@dataclass(frozen=True)
class Portion:
    """What one process computes of a step: batches, each with its part; and the picture files of all samples of the step.
    `asking` are the passes, from 0, in which some process asks the base; all then do it that go in step."""

    batches: tuple[tuple[Part, Batch], ...]
    names: tuple[str, ...]
    asking: frozenset[int] = frozenset()


class Visit(NamedTuple):
    """A sample as one batch shows it."""

    sample: Sample
    caption: str
    view: int = 0


class BatchPlan:
    """The batches of a run, by number, of the samples that are trained on.

    `caption_dropout` is the share of captions replaced by the empty one. `mix` says how datasets share the run, `share` which
    part of each step is this process's.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        caches: Caches,
        *,
        batch_size: int,
        caption_dropout: float,
        seed: int,
        mix: Mix = ALIKE,
        share: Share = WHOLE,
    ):
        self._share = share
        self._accumulation = mix.accumulation
        self._samples = samples
        self._caches = caches
        self._caption_dropout = caption_dropout
        self._seed = seed
        self.order = Order(samples, batch_size=batch_size, seed=seed, mix=mix)

    def indices_of_epoch(self, epoch: int) -> list[tuple[int, ...]]:
        """The sample numbers of each batch of this epoch."""
        return self.order.indices_of_epoch(epoch)

    def indices(self, number: int) -> tuple[int, ...]:
        """The sample numbers of batch `number`, counted from 0 over the whole run."""
        return self.order.indices(number)

    def portion(self, step: int) -> Portion:
        """What this process computes of optimiser step `step`, read from the caches, on the CPU."""
        first = step * self._accumulation
        indices = [self.indices(number) for number in range(first, first + self._accumulation)]
        parts = parts_of([len(some) for some in indices], self._share)
        return Portion(
            batches=tuple((part, self.batch(first + part.number, part.rows)) for part in parts),
            names=tuple(str(self._samples[index].path) for some in indices for index in some),
            asking=frozenset(self._asking(indices)) if self._share.in_step else frozenset(),
        )

    def _asking(self, indices: Sequence[Sequence[int]]) -> Iterator[int]:
        """The passes of a step in which any process has a sample for regularisation."""
        sizes = [len(some) for some in indices]
        for rank in range(self._share.count):
            for number, part in enumerate(parts_of(sizes, self._share._replace(rank=rank))):
                if any(self._samples[indices[part.number][row]].is_regularisation for row in part.rows):
                    yield number

    def batch(self, number: int, rows: range | None = None) -> Batch:
        """Batch `number`, or these rows of it, read from the caches, on the CPU."""
        samples = [self._samples[index] for index in self.indices(number)]
        dropped, caption, view = torch.rand(
            3, len(samples), generator=generator(self._seed, number, "captions and views")
        ).tolist()
        visits = [
            Visit(
                sample,
                "" if drop < self._caption_dropout else sample.captions[int(which * len(sample.captions))],
                int(way * len(sample.views)),
            )
            for sample, drop, which, way in zip(samples, dropped, caption, view, strict=True)
        ]
        if rows is None or len(rows) == len(visits):
            return read_batch(visits, self._caches)
        others = [visit for row, visit in enumerate(visits) if row not in rows]
        return read_batch(visits[rows.start : rows.stop], self._caches, others)


def read_batch(visits: Sequence[Visit], caches: Caches, others: Sequence[Visit] = ()) -> Batch:
    """These samples of one shape, from the caches; on the CPU. The `others` of their micro-batch are another process's."""
    samples, texts = [visit.sample for visit in visits], [caches.text(visit.caption) for visit in visits]
    assert len({sample.shape for sample in samples}) == 1, f"a batch of {sorted({sample.shape for sample in samples})}"
    mask_BHW, weight_BHW = _read_masks(visits, caches)
    return Batch(
        latent_BCHW=torch.stack([caches.latent(visit.sample, visit.view) for visit in visits]),
        text_BLD=torch.stack([entry["text"] for entry in texts]),
        text_mask_BL=torch.stack([entry["text_mask"] for entry in texts]),
        pooled_BP=torch.stack([entry["pooled"] for entry in texts]),
        names=tuple(str(sample.path) for sample in samples),
        mask_BHW=mask_BHW,
        weight_BHW=weight_BHW,
        regularised=tuple(position for position, sample in enumerate(samples) if sample.is_regularisation),
        reference_BCHW=_read_references(visits, caches),
        other_mask_BHW=_read_masks(others, caches)[0],
    )


def _read_references(visits: Sequence[Visit], caches: Caches) -> Tensor | None:
    """(B, C, H, W) what the pictures start from; None where they start from nothing."""
    if visits[0].sample.reference is None:
        return None
    return torch.stack([caches.reference(visit.sample, visit.view) for visit in visits])


def _read_masks(visits: Sequence[Visit], caches: Caches) -> tuple[Tensor | None, Tensor | None]:
    """(B, H, W) what the masks mark, and how much each cell counts; None twice where no sample has a mask."""
    if all(visit.sample.mask is None for visit in visits):
        return None, None
    width, height = (edge // DOWNSCALE for edge in visits[0].sample.bucket)
    masks, weights = [], []
    for sample, _, view in visits:
        if sample.mask is None:
            masks.append(torch.zeros(height, width))
            weights.append(torch.ones(height, width))
        else:
            masks.append(caches.mask(sample, view))
            weights.append(flow.mask_weight(masks[-1], sample.mask.background_weight, sample.mask.normalise_area))
    return torch.stack(masks), torch.stack(weights)
