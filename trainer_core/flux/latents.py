"""FLUX's view of a latent: 2x2 patches as tokens, and the position of each.

Legend: B batch, C latent channels (16), H W latent height and width (pixels / 8), S image tokens = (H/2)(W/2), L text tokens.
A token holds its patch as (channel, dy, dx); tokens run row by row. Positions are (0, row, column), those of a reference
(1, row, column) with rows and columns from 0 again; text has (0, 0, 0).
"""

import torch
from torch import Tensor


def pack(latent_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, S, 4C)."""
    B, C, H, W = latent_BCHW.shape
    patches = latent_BCHW.view(B, C, H // 2, 2, W // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(B, (H // 2) * (W // 2), 4 * C)


def unpack(tokens_BSD: Tensor, height: int, width: int) -> Tensor:
    """(B, S, 4C) -> (B, C, height, width), the inverse of `pack`; sizes in latent cells."""
    B, _, D = tokens_BSD.shape
    patches = tokens_BSD.view(B, height // 2, width // 2, D // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(B, D // 4, height, width)


def image_ids(height: int, width: int, *, is_reference: bool = False) -> Tensor:
    """(S, 3) float32 positions of the tokens of a latent of this size: the picture's own, or those of its reference."""
    rows = torch.arange(height // 2, dtype=torch.float32).repeat_interleave(width // 2)
    columns = torch.arange(width // 2, dtype=torch.float32).repeat(height // 2)
    return torch.stack([torch.full_like(rows, is_reference), rows, columns], dim=1)


def text_ids(length: int) -> Tensor:
    """(L, 3) float32 zeros."""
    return torch.zeros(length, 3)
