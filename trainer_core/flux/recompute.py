"""Gradient checkpointing of every n-th block: less is recomputed, for more memory.

What a checkpointed block keeps is what goes into it. With offloading that waits in host memory for the backward pass; rotary
tables and the conditioning vector, which all blocks share, stay.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

TOKENS = 3  # dimensions of what only this block keeps: (samples, tokens, width)


def recompute_blocks(transformer: FluxTransformer2DModel, interval: int, *, offload: bool = False) -> None:
    """Recompute the blocks 0, n, 2n, ... in the backward pass, counted over the double blocks, then the single ones."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    chosen = {id(block) for block in blocks[::interval]}

    def run(block: nn.Module, *arguments: Any) -> Any:
        if id(block) in chosen:
            with waiting_on_host() if offload else nullcontext():
                return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    transformer.enable_gradient_checkpointing(gradient_checkpointing_func=run)


def waiting_on_host() -> AbstractContextManager[None]:
    """What blocks checkpointed in here keep for the backward pass waits in host memory, pinned where there is a card."""

    def pack(tensor: Tensor) -> tuple[torch.device, Tensor]:
        if tensor.ndim < TOKENS:
            return tensor.device, tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return tensor.device, host.copy_(tensor)

    def unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
        device, tensor = packed
        return tensor.to(device, non_blocking=True)

    return saved_tensors_hooks(pack, unpack)
