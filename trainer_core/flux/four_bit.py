"""bitsandbytes' 4-bit layers whose weights are not theirs to keep.

bitsandbytes hangs the packed weight on its node of the graph, beside what autograd saves. Gradient checkpointing, which drops
what autograd saves, does not know of it: so a weight that visits the card for one block would stay there from the first
forward pass to the block's backward, and all visitors would be there at once. Here is the same product with the weight saved
as autograd wants it; the node itself refers only to the scales that wait on the host.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn
from torch.nn import Parameter

from .quantize import plain_tensors

HOOK = "visiting four bits"


class FourBitHook(ModelHook):
    """On a 4-bit layer with its waiting weight in place: its product, with whatever weight it has then."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self._waiting = layer.weight.quant_state

    def new_forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        inner = x.to(layer.compute_dtype)
        bias = None if layer.bias is None else layer.bias.to(inner.dtype)
        return _Product.apply(inner, bias, self._waiting, *plain_tensors(layer.weight)).to(x.dtype)


def is_four_bit(tensor: Tensor) -> bool:
    """Whether this is a weight of bitsandbytes' 4-bit layers."""
    return hasattr(tensor, "quant_state")


def rebuilt(weight: Any, parts: Iterator[Tensor]) -> Parameter:
    """The weight made of other parts, in the order of `plain_tensors`; bitsandbytes itself moves scales in place."""
    from bitsandbytes.nn import Params4bit

    return Params4bit(
        next(parts),
        requires_grad=False,
        quant_state=_state(weight.quant_state, parts),
        blocksize=weight.blocksize,
        compress_statistics=weight.compress_statistics,
        quant_type=weight.quant_type,
        quant_storage=weight.quant_storage,
        module=weight.module,
        bnb_quantized=True,
    )


class _Product(torch.autograd.Function):
    """x W^T + bias for a frozen W; the arguments after `waiting` are W's parts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, waiting: Any, packed: Tensor, *scales: Tensor) -> Tensor:
        from bitsandbytes import matmul_4bit

        ctx.save_for_backward(packed, *scales)
        ctx.waiting = waiting
        return matmul_4bit(x, packed.t(), bias=bias, quant_state=_state(waiting, iter(scales)))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from bitsandbytes.functional import dequantize_4bit

        packed, *scales = ctx.saved_tensors
        weight_OI = dequantize_4bit(packed, _state(ctx.waiting, iter(scales))).to(gradient.dtype)
        return (gradient @ weight_OI, *(None for _ in range(3 + len(scales))))


def _state(like: Any, scales: Iterator[Tensor]) -> Any:
    """bitsandbytes' record of how a weight is packed, with other scales."""
    state = copy.copy(like)
    state.absmax, state.code = next(scales), next(scales)
    if state.nested:
        state.state2 = copy.copy(like.state2)
        state.state2.absmax, state.state2.code, state.offset = next(scales), next(scales), next(scales)
    return state
