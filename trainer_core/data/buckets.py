"""Buckets: the picture sizes that a run trains at, so that pictures of one size can share a batch.

Every picture is brought to about the same area while it keeps its aspect as nearly as the grid allows. Pure integer maths.

    edge   = the resolution, rounded to the grid
    width  = edge * sqrt(aspect), height = edge / sqrt(aspect), each rounded to the grid

The grid is 64 px for FLUX.1. A square at 1024 px, 1344x768 for 16:9, 1152x896 for 4:3: what SimpleTuner's users know. Areas
lie within 7 % of the square's up to an aspect of 4 at 1024 px. A picture so long that its shorter edge would be less than one
step of the grid loses its ends rather than make a bucket that no card can hold. Positions within what is cropped away are
shares: 0 keeps the left or the top, 0.5 the middle, 1 the right or the bottom.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

Unit = Literal["pixel_area", "area", "pixel"]  # the edge of a square of that area; megapixels; the shorter edge
KNOWN_AREAS = ((0.25, 512), (0.5, 768), (1.0, 1024), (2.0, 1536), (4.0, 2048))  # megapixels, and the square they stand for
AREA_TOLERANCE = 0.05
LONGEST_BY_SHORTER_EDGE = 8  # aspect from which on a bucket by its shorter edge grows no longer


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


def edge_of_area(megapixels: float) -> float:
    """The edge of a square of this area, in pixels; close to the usual areas it is the usual edge (1.0 is 1024)."""
    for usual, edge in KNOWN_AREAS:
        if abs(megapixels - usual) <= AREA_TOLERANCE + 1e-9:
            return edge
    return math.sqrt(megapixels * 1e6)


def bucket_for(width: int, height: int, resolution: float, grid: int) -> Bucket:
    """The bucket of a picture of this size, in pixels; `resolution` is the edge of the square of the wanted area."""
    aspect = width / height
    edge = round_to_grid(resolution, grid)
    longest = edge * edge // grid
    across, down = edge * math.sqrt(aspect), edge / math.sqrt(aspect)
    return Bucket(min(longest, round_to_grid(across, grid)), min(longest, round_to_grid(down, grid)))


def bucket_by_shorter_edge(width: int, height: int, resolution: float, grid: int) -> Bucket:
    """The bucket of a picture of this size whose shorter edge is the resolution, in pixels."""
    edge = round_to_grid(resolution, grid)
    stretch = min(LONGEST_BY_SHORTER_EDGE, max(width, height) / min(width, height))
    longer = round_to_grid(edge * stretch, grid)
    return Bucket(longer, edge) if width > height else Bucket(edge, longer)


def bucket_at(width: int, height: int, resolution: float, unit: Unit, grid: int) -> Bucket:
    """The bucket of a picture of this size, in pixels, where the resolution has this unit."""
    if unit == "pixel":
        return bucket_by_shorter_edge(width, height, resolution, grid)
    return bucket_for(width, height, edge_of_area(resolution) if unit == "area" else resolution, grid)


def measured(width: int, height: int, unit: Unit) -> float:
    """How large a picture of this size, in pixels, is in this unit."""
    if unit == "pixel":
        return min(width, height)
    return width * height / 1e6 if unit == "area" else math.sqrt(width * height)


def brought_to(width: int, height: int, target: float, unit: Unit) -> tuple[int, int]:
    """The size in pixels, of the same aspect, that measures `target` in this unit."""
    factor = target / measured(width, height, unit)
    scale = math.sqrt(factor) if unit == "area" else factor
    return max(1, round(width * scale)), max(1, round(height * scale))


def covering(width: int, height: int, bucket: Bucket) -> tuple[int, int]:
    """The smallest size of the same aspect that covers the bucket."""
    scale = max(bucket.width / width, bucket.height / height)
    return max(bucket.width, round(width * scale)), max(bucket.height, round(height * scale))


def crop_at(width: int, height: int, bucket: Bucket, across: float, down: float) -> Fit:
    """Resized to (width, height), which covers the bucket, and cropped at this share of what stands over."""
    left = math.ceil(across * (width - bucket.width) - 0.5)
    return Fit(width, height, left, math.ceil(down * (height - bucket.height) - 0.5))


def fit_centre(width: int, height: int, bucket: Bucket) -> Fit:
    """Resize so that the picture just covers the bucket, and crop what stands over equally on both sides."""
    return crop_at(*covering(width, height, bucket), bucket, 0.5, 0.5)


def share_around(centre: float, length: int, kept: int) -> float:
    """The share at which `length` pixels are cropped to `kept` so that `centre`, a share too, comes nearest the middle."""
    over = length - kept
    return min(1.0, max(0.0, (centre * length - kept / 2) / over)) if over else 0.5


def nearest_aspect(aspect: float, others: Sequence[float]) -> float:
    """The one that loses least of a picture when it is cropped to it."""
    return min(others, key=lambda other: abs(math.log(other / aspect)))
