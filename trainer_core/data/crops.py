"""Where a picture of a dataset goes: its bucket, and the ways in which it is brought to it."""

from pathlib import Path

from ..specs.dataset import DatasetSpec
from .buckets import Bucket, Fit, bucket_for, fit_centre
from .sample import Facts


def place(path: Path, facts: Facts, spec: DatasetSpec, resolution: float, grid: int) -> tuple[Bucket, tuple[Fit, ...]]:
    """The bucket at this resolution, and a view for each way of cropping and mirroring; Reject where the spec leaves it out."""
    bucket = bucket_for(facts.width, facts.height, round(resolution), grid)
    fits = [fit_centre(facts.width, facts.height, bucket)]
    if spec.horizontal_flip:
        fits += [fit._replace(mirrored=True) for fit in fits]
    return bucket, tuple(fits)
