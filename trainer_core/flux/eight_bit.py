"""Products of 8-bit numbers: a quantised layer multiplies what it keeps, instead of bringing it back first.

The weights are torchao's, 8-bit integers or floats with a scale for each row. What comes in is rounded to the same kind, each
row (a token) by its own largest value; the product is made by the card's 8-bit units, which are about twice as fast as its
bfloat16 ones, and scaled once. The gradient of the layer's input goes the same way: the weights' scales are multiplied into
what comes back before that is rounded, so the same 8-bit weights serve both directions. The weights are frozen, so there is no
third product; and the adapter's own small products stay whole.

A CPU multiplies the same numbers in float32: what comes out is the same, only no sooner. Few rows (modulation has one for each
picture) are multiplied as if the layer were only stored in 8 bits: the units take no fewer than `FEW` rows.
"""

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ..errors import JobError
from ..specs.base import BaseModelSpec
from .quantize import Quantiser, make_quantiser, plain_tensors

KINDS = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # and the largest number of each
FEW = 17  # rows that cuBLAS wants at least for integers
SMALLEST = 1e-12  # scale

log = logging.getLogger(__name__)


class EightBitLinear(nn.Linear):
    """A linear layer whose products are of 8-bit numbers: those of a layer that torchao has quantised, which is used up."""

    def __init__(self, quantised: nn.Linear):
        nn.Module.__init__(self)  # nn.Linear's own would make a whole weight
        self.in_features, self.out_features, self.bias = quantised.in_features, quantised.out_features, quantised.bias
        numbers_OI, scale_O = _numbers_and_scale(quantised.weight)
        self.numbers_OI = nn.Parameter(numbers_OI, requires_grad=False)
        self.scale_O = nn.Parameter(scale_O, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """(out, in) float32, made anew each time; for whoever wants to look at it, as PEFT does."""
        return self.numbers_OI.float() * self.scale_O[:, None]

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() < FEW * self.in_features:
            return functional.linear(input, self.weight.to(input.dtype), self.bias)
        return _Product.apply(input, self.numbers_OI, self.scale_O, self.bias)


def base_quantiser(base: BaseModelSpec, via: torch.device) -> Quantiser | None:
    """The quantiser of this base, working on a device; None where the base stays whole."""
    quantiser = make_quantiser(base.base_model_precision, via)
    return replace(quantiser, finish=EightBitLinear) if quantiser is not None and base.quantized_matmul else quantiser


def check_products(base: BaseModelSpec, device: torch.device) -> None:
    """Two small ones, before anything is loaded; JobError where this device cannot multiply such numbers."""
    kind = torch.int8 if base.base_model_precision.startswith("int8") else torch.float8_e4m3fn
    numbers = torch.eye(32, device=device).to(kind)
    try:
        multiply(torch.ones(32, 32, device=device), numbers)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise JobError(
            f"base.quantized_matmul: this device has no products of {base.base_model_precision} ({reason}); turn it off"
        ) from None
    if device.type == "cpu":
        log.warning("base.quantized_matmul: the CPU multiplies the same numbers in float32, so it gains no time here")


def multiply(whole_MK: Tensor, numbers_KN: Tensor, scale_N: Tensor | None = None) -> Tensor:
    """whole @ (numbers * scale, where there is one), the first rounded to the kind of the second, row by row; float32 (M, N),
    or bfloat16 from a card's products of 8-bit floats."""
    rounded_MK, scale_M1 = _rounded(whole_MK, numbers_KN.dtype)
    is_card = whole_MK.device.type != "cpu"
    if is_card and numbers_KN.stride(0) != 1:
        numbers_KN = numbers_KN.t().contiguous().t()  # the units want each column in one piece
    if is_card and numbers_KN.dtype != torch.int8:
        scale_1N = scale_M1.new_ones(1, numbers_KN.shape[1]) if scale_N is None else scale_N[None]
        return torch._scaled_mm(rounded_MK, numbers_KN, scale_a=scale_M1, scale_b=scale_1N, out_dtype=torch.bfloat16)
    product_MN = torch._int_mm(rounded_MK, numbers_KN) if is_card else rounded_MK.float() @ numbers_KN.float()
    product_MN = product_MN * scale_M1
    return product_MN if scale_N is None else product_MN * scale_N


def _rounded(whole_MK: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """The nearest 8-bit numbers, and by what each row (M, 1) of them is to be multiplied."""
    whole_MK = whole_MK.float()
    scale_M1 = (whole_MK.abs().amax(1, keepdim=True) / KINDS[kind]).clamp(min=SMALLEST)
    parts_MK = whole_MK / scale_M1
    return (parts_MK if kind.is_floating_point else parts_MK.round()).to(kind), scale_M1


def _numbers_and_scale(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) of an 8-bit kind and (out,) float32, of which torchao's weight consists; its zero points are zero."""
    plain = plain_tensors(weight)
    [numbers_OI] = (tensor for tensor in plain if tensor.dtype in KINDS and tensor.shape == weight.shape)
    [scale] = (tensor for tensor in plain if tensor.dtype not in KINDS and tensor.is_floating_point())
    return numbers_OI.detach(), scale.detach().float().reshape(-1).expand(len(numbers_OI)).contiguous()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, numbers_OI: Tensor, scale_O: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(numbers_OI, scale_O)
        product = multiply(input.reshape(-1, input.shape[-1]), numbers_OI.t(), scale_O)
        product = product if bias is None else product + bias
        return product.to(input.dtype).reshape(*input.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        numbers_OI, scale_O = ctx.saved_tensors
        scaled_MO = gradient.reshape(-1, gradient.shape[-1]).float() * scale_O
        product = multiply(scaled_MO, numbers_OI)
        return product.to(gradient.dtype).reshape(*gradient.shape[:-1], -1), None, None, None
