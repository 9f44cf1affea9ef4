"""Buckets: the picture sizes that a run trains at, so that pictures of one size can share a batch.

Every picture is brought to about the same area while it keeps its aspect as nearly as the grid allows. Pure integer maths.

    edge   = the resolution, rounded to the grid
    width  = edge * sqrt(aspect), height = edge / sqrt(aspect), each rounded to the grid

The grid is 64 px for FLUX.1. A square at 1024 px, 1344x768 for 16:9, 1152x896 for 4:3: what SimpleTuner's users know.
"""

import math
from typing import NamedTuple


class Bucket(NamedTuple):
    """Size in pixels after cropping."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class Fit(NamedTuple):
    """How a picture becomes its bucket: resized to (width, height) in pixels, then cropped at (left, top), then mirrored."""

    width: int
    height: int
    left: int
    top: int
    mirrored: bool = False


def round_to_grid(length: float, grid: int) -> int:
    """The nearest multiple of the grid, at least one; halves go up."""
    return max(grid, math.floor(length / grid + 0.5) * grid)


def bucket_for(width: int, height: int, resolution: int, grid: int) -> Bucket:
    """The bucket of a picture of this size, in pixels; `resolution` is the edge of the square of the wanted area."""
    aspect = width / height
    edge = round_to_grid(resolution, grid)
    return Bucket(round_to_grid(edge * math.sqrt(aspect), grid), round_to_grid(edge / math.sqrt(aspect), grid))


def fit_centre(width: int, height: int, bucket: Bucket) -> Fit:
    """Resize so that the picture just covers the bucket, and crop what stands over equally on both sides."""
    scale = max(bucket.width / width, bucket.height / height)
    resized_width = max(bucket.width, round(width * scale))
    resized_height = max(bucket.height, round(height * scale))
    return Fit(resized_width, resized_height, (resized_width - bucket.width) // 2, (resized_height - bucket.height) // 2)
