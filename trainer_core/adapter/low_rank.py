"""The best product of two thin matrices for a change of weight, by its singular values.

The best approximation of rank r keeps the r largest singular values (Eckart and Young 1936), and what it keeps of the change's
energy is the sum of their squares over the sum of all. The one idea is never to decompose a large matrix where its factors
tell the same:

  * lora  up = Q R and down' = P S (QR), so up down = Q (R S') P', and only the small R S' is decomposed: exact.
  * loha  (a b) * (c d), entry by entry, is a product, too: row by row Kronecker products of a with c and of b with d.
  * lokr  the singular values of a Kronecker product are the products of its factors' (Van Loan 2000): exact.
  * a whole matrix: a random subspace and four rounds of power iteration (Halko, Martinsson, Tropp 2011, algorithm 4.4),
    doubled in size until the wanted share is in it. What it kept is measured, not believed.

Here `left` is (out, k), `values` (k,) descending, `right` (k, in).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rng import generator
from .file_factors import Factors, LohaFactors, LokrFactors, LoraFactors

OVERSAMPLING, ROUNDS = 16, 4
NEGLIGIBLE = 1e-6  # of the largest singular value: below it is what float32 rounds to


@dataclass(frozen=True, eq=False)
class Wanted:
    """How much is kept: at most so many singular values, and of those no more than hold this share of the energy."""

    rank: int
    share: float = 1.0


@dataclass(frozen=True, eq=False)
class Singular:
    """A change of weight by its largest singular values; `energy` is the squared norm of all of it."""

    left: Tensor
    values: Tensor
    right: Tensor
    energy: float

    @property
    def kept(self) -> float:
        """The share of the energy that is here; 1 for a change that is nothing."""
        return min(1.0, self.values.square().sum().item() / self.energy) if self.energy else 1.0

    def as_lora(self) -> LoraFactors:
        """In float32; alpha is the rank, so that the strength is 1."""
        root = self.values.sqrt()
        up, down = self.left * root, root[:, None] * self.right
        return LoraFactors(down.float().contiguous(), up.float().contiguous(), float(len(self.values)))


def decompose(factors: Factors, wanted: Wanted) -> Singular:
    """The change that these factors stand for, without making it where that can be helped."""
    if isinstance(factors, LokrFactors):
        return of_kronecker(factors.w1, factors.w2, factors.scale, wanted)
    product = as_product(factors)
    return of_product(*product, wanted) if is_thin(*product) else of_matrix(factors.delta(), wanted)


def as_product(factors: LoraFactors | LohaFactors) -> tuple[Tensor, Tensor]:
    """(up, down) whose product is the change at strength 1, exactly."""
    if isinstance(factors, LoraFactors):
        return factors.scale * factors.up, factors.down
    up = (factors.w1_a[:, :, None] * factors.w2_a[:, None, :]).flatten(1)
    down = (factors.w1_b[:, None, :] * factors.w2_b[None, :, :]).flatten(0, 1)
    return factors.scale * up, down


def is_thin(up: Tensor, down: Tensor) -> bool:
    """Whether the product is told cheaper by its two factors than as a whole."""
    return up.shape[1] <= min(up.shape[0], down.shape[1])


def of_product(up: Tensor, down: Tensor, wanted: Wanted) -> Singular:
    """Of up @ down, exactly; in double precision, for the matrices are small."""
    left, upper = torch.linalg.qr(up.double())
    right, lower = torch.linalg.qr(down.double().T)
    inner_left, values, inner_right = torch.linalg.svd(upper @ lower.T)
    return _cut(left @ inner_left, values, inner_right @ right.T, values.square().sum().item(), wanted)


def of_kronecker(w1: tuple[Tensor, ...], w2: tuple[Tensor, ...], scale: float, wanted: Wanted) -> Singular:
    """Of scale * kron(w1, w2), exactly."""
    (left1, values1, right1), (left2, values2, right2) = (_svd(factor) for factor in (w1, w2))
    products = (values1[:, None] * values2).flatten() * abs(scale)
    values, order = products.sort(descending=True, stable=True)
    energy = products.square().sum().item()
    order = order[: _count(values, energy, wanted)]
    first, second = order // len(values2), order % len(values2)
    left = (left1[:, None, first] * left2[None, :, second]).flatten(0, 1) * (-1 if scale < 0 else 1)
    right = (right1[first][:, :, None] * right2[second][:, None, :]).flatten(1)
    return Singular(left, values[: len(order)], right, energy)


def of_matrix(change: Tensor, wanted: Wanted) -> Singular:
    """Of a whole matrix. The best `wanted.rank` as good as exactly; fewer where the share is reached by fewer."""
    energy, most = change.double().square().sum().item(), min(change.shape)
    size = wanted.rank if wanted.share >= 1.0 else min(wanted.rank, OVERSAMPLING)
    while True:
        found = _in_subspace(change, size + OVERSAMPLING) if 2 * (size + OVERSAMPLING) < most else _whole(change)
        cut = _cut(*found, energy, Wanted(size, wanted.share))
        if size >= min(wanted.rank, most) or (energy == 0 or cut.kept >= wanted.share):
            return cut
        size = min(2 * size, wanted.rank, most)


def _svd(factor: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    whole = factor[0] if len(factor) == 1 else factor[0] @ factor[1]
    return torch.linalg.svd(whole.double(), full_matrices=False)


def _whole(change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(change.float(), full_matrices=False)


def _in_subspace(change: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The singular values of what a random subspace of this size, turned towards the largest, holds of the matrix."""
    change = change.float()
    apply: Callable[[Tensor], Tensor] = change.T.__matmul__
    basis = torch.randn(change.shape[1], size, generator=generator(0, 0, "subspace"))
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(apply(torch.linalg.qr(change @ basis)[0]))[0]
    basis = torch.linalg.qr(change @ basis)[0]
    left, values, right = torch.linalg.svd(basis.T @ change, full_matrices=False)
    return basis @ left, values, right


def _cut(left: Tensor, values: Tensor, right: Tensor, energy: float, wanted: Wanted) -> Singular:
    count = _count(values, energy, wanted)
    return Singular(left[:, :count], values[:count], right[:count], energy)


def _count(values: Tensor, energy: float, wanted: Wanted) -> int:
    """At most so many as are wanted, none that is but rounding, and at least one."""
    count = min(wanted.rank, int((values > NEGLIGIBLE * values[0]).sum()))
    if wanted.share < 1.0 and energy:
        held = values.square().double().cumsum(0) / energy
        count = min(count, int((held < wanted.share).sum()) + 1)
    return max(count, 1)
