"""Gradient checkpointing of every n-th block: less is recomputed, for more memory."""

from typing import Any

from diffusers import FluxTransformer2DModel
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(transformer: FluxTransformer2DModel, interval: int) -> None:
    """Recompute the blocks 0, n, 2n, ... in the backward pass, counted over the double blocks, then the single ones."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    chosen = {id(block) for block in blocks[::interval]}

    def run(block: nn.Module, *arguments: Any) -> Any:
        if id(block) in chosen:
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    transformer.enable_gradient_checkpointing(gradient_checkpointing_func=run)
