"""Where an adapter starts: its parts before the first step, each drawn from (seed, layer), never from the global state.

`default`, `gaussian`, LoKr and LoHa leave one part zero, so at first they change nothing. The LoHa is drawn so that it learns
at a LoRA's pace: its second pair starts as a LoRA does, its first pair multiplies that by numbers of unit variance.

`pissa` and `olora` start from the base's own directions: up down is a low-rank part P of the weight W. As published, the base
becomes W - P and keeps the change that belongs to P out of the file, which then fits no other base. Here the base stays whole:
the adapter counts from its start, so that it adds up down - P. That is the same function and the same gradient, costs no digits
of a bfloat16 base, and is exactly the base at step 0. Written as a LoRA of twice the rank it is

    up down - up0 down0  =  [up, up - up0] [down - down0; down0]

where what was learned stands in small differences of its own, which rounding to bfloat16 leaves alone. `loftq` takes P as the
low-rank part of what quantisation took from W; there the base lacks P and the adapter adds it back, so only the file, which
goes on the whole base, is without it.

PiSSA: Meng et al. 2024 (https://arxiv.org/abs/2404.02948), eq. 2 to 4, with a randomised SVD (Halko et al. 2011, algorithm 4.4)
in place of the whole one. OLoRA: Büyükakyüz 2024 (https://arxiv.org/abs/2406.01775), algorithm 1. LoftQ: Li et al. 2023
(https://arxiv.org/abs/2310.08659), eq. 6, one round. Legend: O out, I in, R rank.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..rng import generator
from .plan import AdaptedModule

OVERSAMPLING, POWER_ROUNDS = 8, 4

Parts = dict[str, Tensor]


def fresh_parts(kind: str, init: str, module: AdaptedModule, seed: int) -> Parts:
    """Parts that change nothing, in float32 on the CPU."""
    return _FRESH[kind](init, module, seed)


def parts_from_weight(init: str, module: AdaptedModule, weight_OI: Tensor, seed: int) -> Parts:
    """`down` and `up` that together are a low-rank part of this float32 matrix, on its device. What is left of the rank in
    a layer that has fewer directions starts as in `fresh_parts`."""
    strength, directions = module.strength, min(module.rank, *weight_OI.shape)
    if init == "olora":
        up_OR, _ = torch.linalg.qr(weight_OI[:, :directions])
        down_RI = up_OR.T @ weight_OI
    else:
        left_OR, values_R, right_RI = _principal(weight_OI, directions, generator(seed, 0, f"directions of {module.name}"))
        root_R = (values_R / strength).sqrt()
        up_OR, down_RI = left_OR * root_R, root_R.unsqueeze(1) * right_RI
    parts = {name: part.to(weight_OI.device) for name, part in _fresh_lora("default", module, seed).items()}
    parts["down"][:directions] = down_RI
    parts["up"][:, :directions] = up_OR
    return parts


class DownFromStart(nn.Module):
    """A LoRA's `down` that remembers its start. With `in_base` the base holds the start too, so it is taken out again."""

    def __init__(self, start_RI: Tensor, in_base: bool):
        super().__init__()
        self.weight = nn.Parameter(start_RI.clone())
        self.register_buffer("start", start_RI, persistent=False)
        self._in_base = in_base

    def whole(self) -> Tensor:
        """(2R, I) as in the file."""
        return torch.cat([self.weight - self.start, self.start])

    def acting(self) -> Tensor:
        """What the layer's input meets: (R, I), or (2R, I) where the start is taken out."""
        return self.whole() if self._in_base else self.weight


class UpFromStart(nn.Module):
    """The `up` that goes with it."""

    def __init__(self, start_OR: Tensor, in_base: bool):
        super().__init__()
        self.weight = nn.Parameter(start_OR.clone())
        self.register_buffer("start", start_OR, persistent=False)
        self._in_base = in_base

    def whole(self) -> Tensor:
        """(O, 2R) as in the file."""
        return torch.cat([self.weight, self.weight - self.start], dim=1)

    def acting(self) -> Tensor:
        """What follows it: (O, R) or (O, 2R)."""
        return self.whole() if self._in_base else self.weight


def _principal(matrix_OI: Tensor, rank: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular values and their directions (O, R), (R,), (R, I), nearly; exact where the matrix has no more."""
    width = min(rank + OVERSAMPLING, *matrix_OI.shape)
    sketch = torch.randn(matrix_OI.shape[1], width, generator=random).to(matrix_OI.device)
    basis, _ = torch.linalg.qr(matrix_OI @ sketch)
    for _ in range(POWER_ROUNDS):
        basis, _ = torch.linalg.qr(matrix_OI.T @ basis)
        basis, _ = torch.linalg.qr(matrix_OI @ basis)
    left, values, right = torch.linalg.svd(basis.T @ matrix_OI, full_matrices=False)
    return (basis @ left)[:, :rank], values[:rank], right[:rank]


def _fresh_lora(init: str, module: AdaptedModule, seed: int) -> Parts:
    random, down = generator(seed, 0, f"lora {module.name}"), torch.empty(module.shapes["down"])
    if init == "gaussian":
        nn.init.normal_(down, std=1 / module.rank, generator=random)
    else:
        _kaiming(down, random)
    return {"down": down, "up": torch.zeros(module.shapes["up"])}


def _fresh_lokr(init: str, module: AdaptedModule, seed: int) -> Parts:
    parts = {part: torch.zeros(shape) for part, shape in module.shapes.items()}
    for part, tensor in parts.items():
        if part not in ("w2", "w2_b"):
            _kaiming(tensor, generator(seed, 0, f"lokr {module.name} {part}"))
    return parts


def _fresh_loha(init: str, module: AdaptedModule, seed: int) -> Parts:
    parts = {part: torch.zeros(shape) for part, shape in module.shapes.items()}
    nn.init.normal_(parts["w1_a"], std=module.rank**-0.5, generator=generator(seed, 0, f"loha {module.name} w1_a"))
    nn.init.normal_(parts["w1_b"], generator=generator(seed, 0, f"loha {module.name} w1_b"))
    _kaiming(parts["w2_b"], generator(seed, 0, f"loha {module.name} w2_b"))
    return parts


def _kaiming(tensor: Tensor, random: torch.Generator) -> None:
    nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=random)


_FRESH: dict[str, Callable[[str, AdaptedModule, int], Parts]] = {
    "lora": _fresh_lora,
    "lokr": _fresh_lokr,
    "loha": _fresh_loha,
}
