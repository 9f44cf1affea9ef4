"""What to do with a bucket that holds less than a batch, which the index cannot know: it is asked after, with the batch size.

A rare aspect never stops a run. By default its batches are smaller; on request its pictures go to the nearest aspect that they
fill a batch with, or are left out with the reason. Pure functions; needs no torch.
"""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from ..errors import JobError
from ..specs.dataset import DatasetSpec
from .buckets import Bucket
from .crops import views_in
from .sample import Index, Rejected, Sample

log = logging.getLogger(__name__)


def settle_small_buckets(index: Index, datasets: Sequence[DatasetSpec], batch_size: int) -> Index:
    """The index with the buckets that hold less than a batch (repeats counted) merged or dropped, as their datasets wish.

    JobError where all of a dataset would be dropped.
    """
    specs = {spec.id: spec for spec in datasets if spec.small_buckets != "smaller_batch"}
    shown: dict[str, Counter[Bucket]] = defaultdict(Counter)
    for sample in index.samples:
        if sample.dataset_id in specs:
            shown[sample.dataset_id][sample.bucket] += sample.passes
    moves, drops = {}, {}
    for dataset_id, counts in shown.items():
        if specs[dataset_id].small_buckets == "merge":
            moves[dataset_id] = _moves_at_each_resolution(specs[dataset_id], counts, batch_size)
        else:
            drops[dataset_id] = _drops(dataset_id, counts, batch_size)
    samples, rejected = [], list(index.rejected)
    for sample in index.samples:
        if sample.bucket in drops.get(sample.dataset_id, ()):
            rejected.append(Rejected(sample.dataset_id, sample.path, drops[sample.dataset_id][sample.bucket]))
        elif sample.bucket in moves.get(sample.dataset_id, ()):
            samples.append(move(sample, moves[sample.dataset_id][sample.bucket], specs[sample.dataset_id]))
        else:
            samples.append(sample)
    return Index(tuple(samples), tuple(rejected))


def merge(counts: Mapping[Bucket, int], batch_size: int) -> dict[Bucket, Bucket]:
    """Where the pictures of each small bucket go; `counts` are what the buckets of one resolution hold.

    The smallest goes first: to the nearest aspect that fills a batch with it, else to the nearest, where it may grow on. What
    cannot be filled in the end stays smaller.
    """
    left, moves = dict(counts), {}
    while len(left) > 1 and min(left.values()) < batch_size:
        small = min(left, key=lambda bucket: (left[bucket], bucket))
        count = left.pop(small)
        enough = [bucket for bucket in left if left[bucket] + count >= batch_size]
        moves[small] = min(enough or left, key=lambda bucket: (_distance(small, bucket), bucket))
        left[moves[small]] += count
    for bucket in moves:
        while moves[bucket] in moves:
            moves[bucket] = moves[moves[bucket]]
    return moves


def move(sample: Sample, bucket: Bucket, spec: DatasetSpec) -> Sample:
    """The sample in another bucket, with its views and those of a strict reference made anew."""
    reference, views = sample.reference, views_in(sample.path, sample.facts, spec, bucket)
    if reference is not None and spec.reference_geometry == "strict":
        reference = reference._replace(bucket=bucket, views=views)  # its picture's very own, to lie exactly over it
    elif reference is not None:
        own = reference.views[0]
        reference = reference._replace(views=tuple(own._replace(mirrored=view.mirrored) for view in views))
    return sample._replace(bucket=bucket, views=views, reference=reference)


def _moves_at_each_resolution(spec: DatasetSpec, counts: Counter[Bucket], batch_size: int) -> dict[Bucket, Bucket]:
    """Where small buckets go, told as a log line each; those of one resolution are merged among themselves."""
    moves = {}
    for resolution in {_resolution_of(bucket, spec) for bucket in counts}:
        moves |= merge(
            {bucket: count for bucket, count in counts.items() if _resolution_of(bucket, spec) == resolution}, batch_size
        )
    for small, bucket in moves.items():
        log.info("dataset %r: bucket %s holds less than a batch and goes to %s", spec.id, small, bucket)
    return moves


def _drops(dataset_id: str, counts: Counter[Bucket], batch_size: int) -> dict[Bucket, str]:
    """The small buckets with the reason; JobError where no other is left."""
    small = {bucket: count for bucket, count in counts.items() if count < batch_size}
    if len(small) == len(counts):
        raise JobError(
            f"dataset {dataset_id!r}: small_buckets is 'drop', and none of its buckets fills a batch of {batch_size} (the "
            f"fullest holds {max(small.values())}); choose 'merge' or 'smaller_batch', lower train_batch_size, or raise repeats"
        )
    return {
        bucket: f"its bucket {bucket} holds {count}, less than a batch of {batch_size}, and small_buckets is 'drop'"
        for bucket, count in small.items()
    }


def _resolution_of(bucket: Bucket, spec: DatasetSpec) -> float:
    """Which of the dataset's resolutions the bucket is of: the nearest in the unit of resolution_type."""
    area = bucket.width * bucket.height
    size = {"pixel_area": math.sqrt(area), "area": area / 1e6, "pixel": min(bucket)}[spec.resolution_type]
    return min(spec.resolution, key=lambda resolution: abs(math.log(resolution / size)), default=0.0)


def _distance(one: Bucket, other: Bucket) -> float:
    """How far two aspects are apart, alike for wide and tall."""
    return abs(math.log(one.width * other.height / (one.height * other.width)))
