"""The order of a run: which samples each batch holds, as a function of the seed and the batch's number.

A batch is of one dataset and one bucket. An epoch shows every sample as often as its passes say; a bucket's samples are shown
all once before any is shown again, and its last batch may be smaller. No state is carried, so a resumed run needs none.

How datasets mix: each is a Poisson process, its batches arrive after exponential waits, at a rate that is its weight, and an
epoch is the batches of all datasets by the time of arrival. Exponential waits have no memory, so this is the distribution of
drawing the next batch's dataset again and again by weight among those that have batches left, without drawing one by one.

Where datasets have windows of steps, the run is cut into stretches at their edges. Within a stretch the datasets are always the
same ones, with epochs of their own; a run without windows is one stretch. The cuts do not depend on the run's length.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..rng import generator
from .sample import Sample


class Turns(NamedTuple):
    """When a dataset is drawn from: how early beside the others, and in which optimiser steps (end 0: to the run's end)."""

    probability: float = 1.0
    start_step: int = 0
    end_step: int = 0


class Mix(NamedTuple):
    """How datasets share a run. `turns` by id; without an entry a dataset is drawn from as any other, and always.

    `by_size`: a dataset's weight is its probability times its batches in an epoch, else its probability alone.
    `accumulation` is how many batches make an optimiser step.
    """

    turns: Mapping[str, Turns] = {}
    by_size: bool = True
    accumulation: int = 1


ALIKE = Mix()


class Stretch(NamedTuple):
    """From this optimiser step on, until the next stretch, these datasets are drawn from."""

    start_step: int
    dataset_ids: tuple[str, ...]


class Stock(NamedTuple):
    """A dataset's samples, those of a bucket together, and the batches of an epoch of it.

    S samples, B batches. A batch is entries `start_B` to `start_B + size_B` of the dataset's entries: its samples, bucket by
    bucket, each as often as its passes say.
    """

    sample_S: Tensor  # int64, numbers of samples
    bucket_S: Tensor  # int64, from 0 in ascending order
    passes_S: Tensor
    bucket_B: Tensor
    start_B: Tensor
    size_B: Tensor


class Epoch(NamedTuple):
    """N entries are sample numbers; batch number b is entries `start_B[b]` to `start_B[b] + size_B[b]`."""

    entry_N: Tensor
    start_B: Tensor
    size_B: Tensor

    def batch(self, position: int) -> tuple[int, ...]:
        start, size = int(self.start_B[position]), int(self.size_B[position])
        return tuple(self.entry_N[start : start + size].tolist())


class Order:
    """The sample numbers of each batch of a run."""

    def __init__(self, samples: Sequence[Sample], *, batch_size: int, seed: int, mix: Mix = ALIKE):
        self._seed = seed
        self._mix = mix
        numbers = defaultdict(list)
        for number, sample in enumerate(samples):
            numbers[sample.dataset_id].append(number)
        self._stocks = {name: _stock(samples, own, batch_size) for name, own in numbers.items()}
        self._turns = {name: mix.turns.get(name, Turns()) for name in self._stocks}
        # what looks further ahead than the run is long may meet steps without a dataset; within a run they are refused
        self.stretches = tuple(stretch for stretch in cut_stretches(self._turns) if stretch.dataset_ids)
        self._starts = [stretch.start_step * mix.accumulation for stretch in self.stretches]
        self._epoch = lru_cache(maxsize=2)(self._plan)

    def batches_per_epoch(self, stretch: int = 0) -> int:
        """How many batches show everything of this stretch as often as its passes say."""
        return sum(len(self._stocks[name].size_B) for name in self.stretches[stretch].dataset_ids)

    def epochs(self, num_batches: int) -> float:
        """How many epochs the first so many batches are, those of all stretches together."""
        ends = [min(end, num_batches) for end in (*self._starts[1:], num_batches)]
        return sum(
            max(0, end - start) / self.batches_per_epoch(stretch)
            for stretch, (start, end) in enumerate(zip(self._starts, ends, strict=True))
        )

    def indices(self, number: int) -> tuple[int, ...]:
        """The sample numbers of batch `number`, counted from 0 over the whole run."""
        stretch = bisect_right(self._starts, number) - 1
        assert stretch >= 0, "a run with steps that no dataset is drawn from is refused"
        epoch, position = divmod(number - self._starts[stretch], self.batches_per_epoch(stretch))
        return self._epoch(stretch, epoch).batch(position)

    def indices_of_epoch(self, epoch: int, stretch: int = 0) -> list[tuple[int, ...]]:
        """The sample numbers of each batch of this epoch of this stretch."""
        entry_N, start_B, size_B = (part.tolist() for part in self._plan(stretch, epoch))
        return [tuple(entry_N[start : start + size]) for start, size in zip(start_B, size_B, strict=True)]

    def _plan(self, stretch: int, epoch: int) -> Epoch:
        """The datasets of the stretch, each shuffled, their batches by the time of arrival."""
        random = generator(self._seed, epoch, f"order of samples in stretch {stretch}")
        entries, arrivals, starts, sizes, offset = [], [], [], [], 0
        for name in self.stretches[stretch].dataset_ids:
            stock, weight = self._stocks[name], self._turns[name].probability
            if self._mix.by_size:
                weight *= len(stock.size_B)
            entries.append(_shuffled_entries(stock, random))
            arrivals.append(_arrivals(stock, random) / weight)
            starts.append(stock.start_B + offset)
            sizes.append(stock.size_B)
            offset += len(entries[-1])
        order_B = torch.argsort(torch.cat(arrivals), stable=True)
        return Epoch(torch.cat(entries), torch.cat(starts)[order_B], torch.cat(sizes)[order_B])


def cut_stretches(turns: Mapping[str, Turns]) -> tuple[Stretch, ...]:
    """The run at the edges of all windows; a stretch may be without datasets."""
    edges = {0, *(edge for turn in turns.values() for edge in (turn.start_step, turn.end_step))}
    return tuple(
        Stretch(
            step,
            tuple(
                name for name, turn in turns.items() if turn.start_step <= step and (step < turn.end_step or not turn.end_step)
            ),
        )
        for step in sorted(edges)
    )


def _stock(samples: Sequence[Sample], numbers: Sequence[int], batch_size: int) -> Stock:
    """These samples of one dataset, with the batches that they make."""
    by_bucket = defaultdict(list)
    for number in numbers:
        by_bucket[samples[number].shape].append(number)  # a reference of another bucket needs another batch
    ordered = [number for own in by_bucket.values() for number in own]
    passes_S = torch.tensor([samples[number].passes for number in ordered])
    bucket_S = torch.repeat_interleave(torch.tensor([len(own) for own in by_bucket.values()]))
    entries_K = torch.zeros(len(by_bucket), dtype=torch.int64).index_add(0, bucket_S, passes_S)  # K buckets
    batches_K = (entries_K + batch_size - 1) // batch_size
    bucket_B = torch.repeat_interleave(batches_K)
    nth_B = torch.arange(len(bucket_B)) - (batches_K.cumsum(0) - batches_K)[bucket_B]  # which batch of its bucket
    start_B = (entries_K.cumsum(0) - entries_K)[bucket_B] + nth_B * batch_size
    size_B = (entries_K[bucket_B] - nth_B * batch_size).clamp(max=batch_size)
    return Stock(torch.tensor(ordered), bucket_S, passes_S, bucket_B, start_B, size_B)


def _shuffled_entries(stock: Stock, random: torch.Generator) -> Tensor:
    """(N,) sample numbers, bucket by bucket and pass by pass, in a random order within each pass of each bucket."""
    position_N = torch.repeat_interleave(stock.passes_S)
    first_S = stock.passes_S.cumsum(0) - stock.passes_S
    pass_N = torch.arange(len(position_N)) - first_S[position_N]
    key_N = stock.bucket_S[position_N] * int(stock.passes_S.max()) + pass_N
    shuffle_N = torch.randperm(len(position_N), generator=random)
    order_N = shuffle_N[torch.argsort(key_N[shuffle_N], stable=True)]
    return stock.sample_S[position_N[order_N]]


def _arrivals(stock: Stock, random: torch.Generator) -> Tensor:
    """(B,) float64: when each batch of a dataset of weight 1 comes. Buckets mix at random, each keeps its batches' order."""
    count = len(stock.bucket_B)
    wait_B = -torch.log1p(-torch.rand(count, dtype=torch.float64, generator=random))
    shuffled_B = stock.bucket_B[torch.randperm(count, generator=random)]
    return wait_B.cumsum(0)[torch.argsort(shuffled_B, stable=True)]
