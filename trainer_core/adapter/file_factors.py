"""What one adapted layer of an adapter file holds, and the change of weight that it stands for.

Three kinds, each a way to write a large matrix with few numbers (out x in is the layer's size, r the rank):

  * lora  alpha / r * up @ down: two thin matrices.
  * loha  alpha / r * (w1_a @ w1_b) * (w2_a @ w2_b), elementwise: two LoRAs, so the rank is up to r squared.
  * lokr  scale * kron(w1, w2): block (i, k) of the change is w1[i, k] * w2. Each of w1 and w2 is whole or a product a @ b of
    rank r; the scale is alpha / r where one is a product (w2's r where both are), and 1, whatever alpha says, where none is.

These are ComfyUI's formulas, and the pictures are made there, so they are ours too. Whoever keeps several layers in one
matrix (qkv) cuts it by rows. That is free for lora and loha, whose rows are the rows of `up` and of `w1_a`, `w2_a`. A lokr
comes apart where the cut runs between the blocks of one w1 row and the next, or inside a single one.

loha is FedPara (2108.06098); LyCORIS (2309.14859) brought both to pictures and named the parts of the files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..errors import JobError

Kind = Literal["lora", "lokr", "loha"]
Parts = Mapping[str, Tensor]


class Factors(Protocol):
    """What all kinds can tell: float32 matrices by their names, their size, their product, and themselves cut by rows."""

    @property
    def alpha(self) -> float:
        """The file's, or the rank where it has none."""

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""

    @property
    def rank(self) -> int | None:
        """The inner size; None for a lokr of two whole factors."""

    def tensors(self) -> dict[str, Tensor]:
        """The matrices by the names that files give them."""

    def size(self) -> tuple[int, int]:
        """(out, in) of the layer that this changes."""

    def delta(self) -> Tensor:
        """(out, in) float32: what is added to the layer's weight at strength 1."""

    def rows(self, index: Tensor) -> "Factors | None":
        """The factors of these rows of the change, in this order; None where this kind cannot say it."""


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """`down` is (r, in), `up` (out, r)."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def tensors(self) -> dict[str, Tensor]:
        return {"down": self.down, "up": self.up}

    def size(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def delta(self) -> Tensor:
        return self.scale * (self.up @ self.down)

    def rows(self, index: Tensor) -> "LoraFactors":
        return LoraFactors(self.down, self.up[index], self.alpha)


@dataclass(frozen=True, eq=False)
class LohaFactors:
    """The `a` are (out, r), the `b` (r, in)."""

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def tensors(self) -> dict[str, Tensor]:
        return {"hada_w1_a": self.w1_a, "hada_w1_b": self.w1_b, "hada_w2_a": self.w2_a, "hada_w2_b": self.w2_b}

    def size(self) -> tuple[int, int]:
        return self.w1_a.shape[0], self.w1_b.shape[1]

    def delta(self) -> Tensor:
        return self.scale * (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)

    def rows(self, index: Tensor) -> "LohaFactors":
        return LohaFactors(self.w1_a[index], self.w1_b, self.w2_a[index], self.w2_b, self.alpha)


@dataclass(frozen=True, eq=False)
class LokrFactors:
    """`w1` and `w2` are each one whole matrix, or two whose product it is."""

    w1: tuple[Tensor, ...]
    w2: tuple[Tensor, ...]
    alpha: float

    @property
    def rank(self) -> int | None:
        """Inner size of the product: w2's, else w1's; None where both are whole, and then alpha says nothing."""
        products = [factor for factor in (self.w2, self.w1) if len(factor) == 2]
        return products[0][1].shape[0] if products else None

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 1.0

    def tensors(self) -> dict[str, Tensor]:
        named = {}
        for name, factor in (("lokr_w1", self.w1), ("lokr_w2", self.w2)):
            named |= {name: factor[0]} if len(factor) == 1 else {f"{name}_a": factor[0], f"{name}_b": factor[1]}
        return named

    def size(self) -> tuple[int, int]:
        return self.w1[0].shape[0] * self.w2[0].shape[0], self.w1[-1].shape[1] * self.w2[-1].shape[1]

    def delta(self) -> Tensor:
        return self.scale * torch.kron(_product(self.w1), _product(self.w2))

    def rows(self, index: Tensor) -> "LokrFactors | None":
        height = self.w2[0].shape[0]
        block, inside = index // height, index % height
        if bool((block == block[0]).all()):  # all in one row of w1
            return LokrFactors(_cut(self.w1, block[:1]), _cut(self.w2, inside), self.alpha)
        whole = len(index) % height == 0 and torch.equal(inside, torch.arange(height).repeat(len(index) // height))
        return LokrFactors(_cut(self.w1, block[::height]), self.w2, self.alpha) if whole else None


def _product(factor: tuple[Tensor, ...]) -> Tensor:
    return factor[0] if len(factor) == 1 else factor[0] @ factor[1]


def _cut(factor: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, ...]:
    return (factor[0][index], *factor[1:])


KIND_OF_PART: dict[str, Kind] = {
    "down": "lora",
    "up": "lora",
    **dict.fromkeys(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), "loha"),
    **dict.fromkeys(("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"), "lokr"),
}


def build_factors(parts: Parts, where: str) -> tuple[Kind, Factors]:
    """The factors of one layer from its tensors by part, and `alpha`; JobError (it begins with `where`) when they don't fit."""
    kinds = sorted({KIND_OF_PART[part] for part in parts if part != "alpha"})
    if len(kinds) != 1:
        raise JobError(
            f"{where} holds {' and '.join(kinds) if kinds else 'nothing but alpha'}; use a file with one whole adapter"
        )
    kind = kinds[0]
    return kind, {"lora": _lora, "lokr": _lokr, "loha": _loha}[kind](parts, where)


def _lora(parts: Parts, where: str) -> LoraFactors:
    up, down = _pair(parts, "up", "down", where)
    return LoraFactors(down, up, _alpha(parts, down.shape[0], where))


def _loha(parts: Parts, where: str) -> LohaFactors:
    w1, w2 = (_pair(parts, f"{name}_a", f"{name}_b", where) for name in ("hada_w1", "hada_w2"))
    if (w1[0].shape[0], w1[1].shape[1]) != (w2[0].shape[0], w2[1].shape[1]):
        raise JobError(f"{where}: its two products have different sizes; the file is broken, take another copy")
    return LohaFactors(*w1, *w2, _alpha(parts, w1[1].shape[0], where))


def _lokr(parts: Parts, where: str) -> LokrFactors:
    w1, w2 = (_whole_or_pair(parts, name, where) for name in ("lokr_w1", "lokr_w2"))
    rank = LokrFactors(w1, w2, 1.0).rank
    return LokrFactors(w1, w2, _alpha(parts, rank or 1, where))


def _whole_or_pair(parts: Parts, name: str, where: str) -> tuple[Tensor, ...]:
    if name not in parts:
        return _pair(parts, f"{name}_a", f"{name}_b", where)
    if f"{name}_a" in parts or f"{name}_b" in parts:
        raise JobError(f"{where} has {name} both whole and as a product; the file is broken, take another copy")
    return (_matrix(parts, name, where),)


def _pair(parts: Parts, left: str, right: str, where: str) -> tuple[Tensor, Tensor]:
    """Two matrices that can be multiplied."""
    first, second = _matrix(parts, left, where), _matrix(parts, right, where)
    if first.shape[1] != second.shape[0]:
        raise JobError(
            f"{where}: {left} {tuple(first.shape)} and {right} {tuple(second.shape)} cannot be multiplied; "
            "the file is broken, take another copy"
        )
    return first, second


def _matrix(parts: Parts, part: str, where: str) -> Tensor:
    """This part, in float32; a 1 x 1 convolution is a matrix too."""
    if part not in parts:
        raise JobError(f"{where} lacks {part} (it has {', '.join(sorted(parts))}); the file is broken, take another copy")
    tensor = parts[part]
    matrix = tensor.flatten(1) if tensor.ndim > 2 and tensor.shape[2:].numel() == 1 else tensor
    if matrix.ndim != 2 or not matrix.numel():
        raise JobError(f"{where}: {part} has shape {tuple(tensor.shape)} and is no matrix; is it an adapter for FLUX.1?")
    if not bool(torch.isfinite(matrix).all()):
        raise JobError(f"{where}: {part} holds numbers that are not finite; that training broke, take an earlier file of it")
    return matrix.float()


def _alpha(parts: Parts, rank: int, where: str) -> float:
    if "alpha" not in parts:
        return float(rank)
    if parts["alpha"].numel() != 1 or not bool(torch.isfinite(parts["alpha"]).all()):
        raise JobError(f"{where}: alpha is {parts['alpha'].tolist()}, not one finite number; take another copy of the file")
    return parts["alpha"].item()
