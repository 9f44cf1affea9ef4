"""Gradient checkpointing of chosen blocks: less is recomputed, for more memory.

What a checkpointed block keeps is what goes into it. With offloading that waits in host memory for the backward pass; what
several blocks share stays: the conditioning vector, rotary tables, and inside a route the tokens that were left out.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from .routing import Shortened

TOKENS = 3  # dimensions of what only this block keeps: (samples, tokens, width)


def recompute_blocks(transformer: FluxTransformer2DModel, interval: int, *, offload: bool = False) -> None:
    """Recompute the blocks 0, n, 2n, ... in the backward pass, counted over the double blocks, then the single ones."""
    num_blocks = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
    recompute_layers(transformer, range(0, num_blocks, interval), offload=offload)


def recompute_layers(transformer: FluxTransformer2DModel, layers: Iterable[int], *, offload: bool = False) -> None:
    """Recompute these blocks in the backward pass, by their numbers. A block before the first that is trained keeps nothing, so
    it is not recomputed, chosen or not."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    chosen = {id(blocks[layer]) for layer in layers}

    def run(block: nn.Module, image: Tensor | Shortened, *others: Any) -> Any:
        if id(block) not in chosen:
            return block(image, *others)
        with waiting_on_host() if offload else nullcontext():
            if isinstance(image, Shortened):
                return checkpoint(
                    _run_shortened, block, image.kept_BKD, image._replace(kept_BKD=None), *others, use_reentrant=False
                )
            return checkpoint(block, image, *others, use_reentrant=False)

    transformer.enable_gradient_checkpointing(gradient_checkpointing_func=run)


def _run_shortened(block: nn.Module, kept_BKD: Tensor, rest: Shortened, *others: Any) -> Any:
    """Inside a route: the tokens apart from what travels with them, which the blocks of the span share."""
    return block(rest._replace(kept_BKD=kept_BKD), *others)


def waiting_on_host() -> AbstractContextManager[None]:
    """What blocks checkpointed in here keep for the backward pass waits in host memory, pinned where there is a card."""

    def pack(tensor: Tensor) -> tuple[torch.device, Tensor]:
        if tensor.ndim < TOKENS:
            return tensor.device, tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return tensor.device, host.copy_(tensor, non_blocking=True)  # it comes back on the same stream, so after this

    def unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
        device, tensor = packed
        return tensor.to(device, non_blocking=True)

    return saved_tensors_hooks(pack, unpack)
