"""The three ways to write a small change of a large matrix, as pure functions of tensors and sizes.

    lora   down (r, in), up (out, r)                             change = up down
    lokr   w1 (a, b), w2 (out/a, in/b)                           change = w1 (x) w2, the Kronecker product
    loha   w1_a, w2_a (out, r), w1_b, w2_b (r, in)               change = (w1_a w1_b) * (w2_a w2_b), entry by entry

each times the strength, alpha / r. LoKr's factors may themselves be split, w1 = w1_a w1_b and w2 = w2_a w2_b. The names of
the parts are LyCORIS', which ComfyUI reads; so is LoKr's rule for the strength: with no split factor there is no rank and the
strength is 1. LoHa is from Hyeon-Woo et al. 2021 (FedPara, https://arxiv.org/abs/2108.06098); LoKr, and both for pictures,
from Yeh et al. 2023 (LyCORIS, https://arxiv.org/abs/2309.14859).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

Shapes = dict[str, tuple[int, ...]]


def factorize(size: int, factor: int) -> tuple[int, int]:
    """(small, large) with small * large = size: the largest divisor up to `factor` and up to the root; -1: up to the root."""
    limit = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    small = next(divisor for divisor in range(limit, 0, -1) if size % divisor == 0)
    return small, size // small


def lora_shapes(out_features: int, in_features: int, rank: int) -> Shapes:
    return {"down": (rank, in_features), "up": (out_features, rank)}


def loha_shapes(out_features: int, in_features: int, rank: int) -> Shapes:
    return {part + side: shape for part in ("w1", "w2") for side, shape in _split(out_features, in_features, rank).items()}


def lokr_shapes(out_features: int, in_features: int, factor: int, rank: int | None) -> Shapes:
    """The small factor whole; the large one whole (`rank` None), or split where the rank makes it smaller."""
    (small_out, large_out), (small_in, large_in) = factorize(out_features, factor), factorize(in_features, factor)
    shapes: Shapes = {"w1": (small_out, small_in)}
    if rank is None or rank * (large_out + large_in) >= large_out * large_in:
        return shapes | {"w2": (large_out, large_in)}
    return shapes | {"w2" + side: shape for side, shape in _split(large_out, large_in, rank).items()}


def rank_of(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The rank by which alpha is divided; 0 where there is none (a LoKr with both factors whole). ComfyUI's rule."""
    return next((shapes[part][0] for part in ("down", "w2_b", "w1_b") if part in shapes), 0)


def change_size(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """(out, in) of the change that parts of these shapes make; None where they do not make one of this kind."""
    if kind == "lora":
        return _product_size(shapes.get("up"), shapes.get("down")) if shapes.keys() == {"down", "up"} else None
    w1, w2 = (shapes.get(name) or _product_size(shapes.get(name + "_a"), shapes.get(name + "_b")) for name in ("w1", "w2"))
    if not w1 or not w2:
        return None
    if kind == "loha":
        return w1 if w1 == w2 and len(shapes) == 4 else None
    return w1[0] * w2[0], w1[1] * w2[1]


def change(kind: str, parts: Mapping[str, Tensor], strength: float) -> Tensor:
    """(out, in) float32: the whole change of the weight. Large; for tests and tools, not for training."""
    parts = {name: tensor.float() for name, tensor in parts.items()}
    if kind == "lora":
        return strength * parts["up"] @ parts["down"]
    if kind == "loha":
        return strength * _whole(parts, "w1") * _whole(parts, "w2")
    return strength * torch.kron(_whole(parts, "w1"), _whole(parts, "w2").contiguous())


def change_norm(kind: str, parts: Mapping[str, Tensor], strength: float) -> float:
    """The Frobenius norm of `change`; for LoRA and LoKr without making it."""
    parts = {name: tensor.float() for name, tensor in parts.items()}
    if kind == "lora":  # ||BA||^2 = sum(B'B * AA')
        squared = ((parts["up"].T @ parts["up"]) * (parts["down"] @ parts["down"].T)).sum().clamp(min=0)
        return strength * squared.sqrt().item()
    if kind == "loha":
        return change(kind, parts, strength).norm().item()
    return strength * (_whole(parts, "w1").norm() * _whole(parts, "w2").norm()).item()


def low_rank_sum(output: Tensor, x: Tensor, down_RI: Tensor, up_OR: Tensor) -> Tensor:
    """output (..., out) plus up down x, of x (..., in), in the output's format whatever that of the parts is: the inner product
    is rounded to it once, and the sum once."""
    hidden = functional.linear(x, down_RI.to(x.dtype)).to(output.dtype)
    summed = torch.addmm(output.flatten(0, -2), hidden.flatten(0, -2), up_OR.to(output.dtype).T)
    return summed.view(output.shape)


def kronecker_output(x: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    """x (..., in) -> (..., out) of the Kronecker product, by its two factors in turn: far less work than with their product."""
    rows = parts["w1"].shape[1] if "w1" in parts else parts["w1_b"].shape[1]
    hidden = x.unflatten(-1, (rows, -1))
    hidden = hidden @ parts["w2"].T if "w2" in parts else (hidden @ parts["w2_b"].T) @ parts["w2_a"].T
    return (_whole(parts, "w1") @ hidden).flatten(-2)


def _whole(parts: Mapping[str, Tensor], name: str) -> Tensor:
    return parts[name] if name in parts else parts[name + "_a"] @ parts[name + "_b"]


def _product_size(left: tuple[int, ...] | None, right: tuple[int, ...] | None) -> tuple[int, int] | None:
    return (left[0], right[1]) if left and right and left[1:] == right[:1] else None


def _split(out_features: int, in_features: int, rank: int) -> Shapes:
    return {"_a": (out_features, rank), "_b": (rank, in_features)}
