"""Dropout whose mask is a function of (seed, step, sample, layer), and of nothing that happened before.

torch's own draws from the global random state, so a mask would depend on all that ran before it. Here a sample's mask belongs
to the sample: the recomputation under gradient checkpointing meets the same mask, a resumed run draws what the uninterrupted
one would have drawn, and five samples at once are masked as five one by one. Costs one generator a layer and sample. The mask
is drawn on the activations' device, so it differs between a CPU and a card.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..rng import derive_seed


class SeededDropout(nn.Module):
    """Zeroes this share of its input (B, ...) in training and scales up the rest. `seed_dropouts` tells it where it stands."""

    def __init__(self, share: float, seed: int, layer: str):
        super().__init__()
        self.share = share
        self.step = 0
        self.first = 0
        self._seed = seed
        self._layer = layer

    @torch.compiler.disable  # a generator is not for a graph
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.stack([self._draw(x[0], self.first + number) for number in range(len(x))])
        return x * kept / (1 - self.share)

    def _draw(self, like: Tensor, sample: int) -> Tensor:
        """The mask of one sample; True: kept."""
        seed = derive_seed(self._seed, self.step, f"dropout of {self._layer}, sample {sample}")
        random = torch.Generator(like.device).manual_seed(seed)
        return torch.rand(like.shape, generator=random, device=like.device) >= self.share


def find_dropouts(model: nn.Module) -> tuple[SeededDropout, ...]:
    """Every dropout of the model."""
    return tuple(module for module in model.modules() if isinstance(module, SeededDropout))


def seed_dropouts(dropouts: Iterable[SeededDropout], *, step: int, first: int) -> None:
    """Tell the dropouts the step, and the position of the batch's first sample among those of the step."""
    for dropout in dropouts:
        dropout.step, dropout.first = step, first
