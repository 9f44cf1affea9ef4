"""Where a picture of a dataset goes: its bucket, and the ways in which it is brought to it.

Three decisions, each a pure function of the picture's size, its content's digest and the settings: which shape (the picture's
own, or one to crop to), which size it is resized to before it is cropped, and which part is kept. What is random is drawn from
the digest, so that an index is the same wherever and whenever it is made. Views of pictures of one size are one object.
"""

import hashlib
import logging
from bisect import bisect
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from ..errors import JobError
from ..specs.aspects import parse_aspects
from ..specs.dataset import DatasetSpec
from .buckets import Bucket, Fit, Unit, brought_to, bucket_at, covering, crop_at, measured, nearest_aspect, share_around
from .find import Found
from .sample import Facts, Reject, Sample

MAX_NAMED = 3
MEMORY = 1 << 16  # sizes of pictures that are remembered
FIXED = {"center": ((0.5, 0.5),), "corner": ((0.0, 0.0),)}
UNIT_WORDS = {"pixel_area": "{:.0f} px as a square", "area": "{:.2f} megapixels", "pixel": "{:.0f} px at the shorter edge"}

log = logging.getLogger(__name__)

Size = tuple[int, int]  # width and height in pixels
Shares = tuple[tuple[float, float], ...]  # where each crop lies, across and down

Placed = tuple[Bucket, tuple[Fit, ...]]
Placer = Callable[[Found, Facts], Placed]

aspects_of = lru_cache(maxsize=64)(parse_aspects)


def place(path: Path, facts: Facts, spec: DatasetSpec, resolution: float, grid: int) -> Placed:
    """The bucket at this resolution, and a view for each way of cropping and mirroring; Reject where the spec leaves it out.

    `resolution` is in the spec's unit, or the edge of a square where the spec gives none.
    """
    size = facts.width, facts.height
    _check_size(size, spec)
    unit = spec.resolution_type if spec.resolution or spec.resolution_type == "pixel" else "pixel_area"
    shape = _shape(size, facts.digest, spec)
    bucket = _bucket(shape, resolution, unit, grid)
    return bucket, views_in(path, facts, spec, bucket)


def placer(spec: DatasetSpec, resolution: float, grid: int) -> Placer:
    """`place` for one dataset at one resolution. Where a picture's content decides nothing, each size is placed once."""
    if spec.crop_style not in FIXED or (spec.crop and spec.crop_aspect == "random"):
        return lambda file, facts: place(file.path, facts, spec, resolution, grid)

    @lru_cache(maxsize=MEMORY)
    def of_size(width: int, height: int) -> Placed:
        return place(Path(), Facts(width, height, digest=""), spec, resolution, grid)

    return lambda file, facts: of_size(facts.width, facts.height)


def views_in(path: Path, facts: Facts, spec: DatasetSpec, bucket: Bucket) -> tuple[Fit, ...]:
    """A view for each way of cropping and mirroring the picture in this bucket."""
    size = facts.width, facts.height
    resized = _resized(size, bucket, spec.maximum_image_size, spec.target_downsample_size, spec.resolution_type)
    make_views = _shared_views if spec.crop_style in FIXED else _views
    return make_views(resized, bucket, _shares(path, facts.digest, spec, resized, bucket), spec.horizontal_flip)


def drawn(digest: str, purpose: str) -> float:
    """A number in [0, 1) that a picture's content and a purpose decide."""
    found = hashlib.blake2b(f"{digest}|{purpose}".encode(), digest_size=6).digest()
    return int.from_bytes(found, "big") / (1 << 48)


def require_detector(spec: DatasetSpec) -> None:
    """JobError, with what to install, where faces are to be found and nothing here finds any."""
    if spec.crop_style == "face":
        from .faces import detector

        detector()


def warn_of_missing_faces(spec: DatasetSpec, samples: Iterable[Sample]) -> None:
    """One warning that counts and names the pictures that are cropped at their middle for want of a face."""
    if spec.crop_style != "face":
        return
    from .faces import find_face

    without = list(dict.fromkeys(s.path.name for s in samples if find_face(s.path, s.facts.digest) is None))
    if without:
        names = ", ".join(without[:MAX_NAMED]) + (", ..." if len(without) > MAX_NAMED else "")
        log.warning("dataset %r: no face was found in %d pictures, whose middle is kept: %s", spec.id, len(without), names)


def _check_size(size: Size, spec: DatasetSpec) -> None:
    """Reject where the picture is too small, too narrow or too wide."""
    width, height = size
    if spec.minimum_image_size:
        unit, least = spec.resolution_type, spec.minimum_image_size
        shown = f"{width}x{height} ({UNIT_WORDS[unit].format(measured(*size, unit))})"
        if measured(*size, unit) < least:
            raise Reject(f"{shown} is smaller than minimum_image_size {least:g}")
        shorter = min(size)
        if spec.crop and spec.crop_aspect == "square" and measured(shorter, shorter, unit) < least:
            raise Reject(f"{shown} has an edge of {shorter} px, too short for a square crop of minimum_image_size {least:g}")
    if spec.minimum_aspect_ratio and width / height < spec.minimum_aspect_ratio:
        raise Reject(
            f"{width}x{height} (aspect {width / height:.3g}) is below minimum_aspect_ratio {spec.minimum_aspect_ratio:g}"
        )
    if spec.maximum_aspect_ratio and width / height > spec.maximum_aspect_ratio:
        raise Reject(
            f"{width}x{height} (aspect {width / height:.3g}) is above maximum_aspect_ratio {spec.maximum_aspect_ratio:g}"
        )


def _shape(size: Size, digest: str, spec: DatasetSpec) -> tuple[float, float]:
    """Width and height of something that has the shape to crop to."""
    if not spec.crop or spec.crop_aspect == "preserve":
        return size
    if spec.crop_aspect == "square":
        return 1, 1
    aspects, weights = zip(*aspects_of(spec.crop_aspect_buckets), strict=True)
    if spec.crop_aspect == "closest":
        return nearest_aspect(size[0] / size[1], aspects), 1
    reached = list(accumulate(weights))
    return aspects[min(bisect(reached, drawn(digest, "aspect") * reached[-1]), len(aspects) - 1)], 1


@lru_cache(maxsize=MEMORY)
def _bucket(shape: tuple[float, float], resolution: float, unit: Unit, grid: int) -> Bucket:
    return _one_of_each(bucket_at(*shape, resolution, unit, grid))


@lru_cache(maxsize=MEMORY)
def _one_of_each(bucket: Bucket) -> Bucket:
    """The same object for equal buckets, of which a run has dozens and samples a hundred thousand."""
    return bucket


@lru_cache(maxsize=MEMORY)
def _resized(size: Size, bucket: Bucket, maximum: float, target: float, unit: Unit) -> Size:
    """What the picture is resized to, before it is cropped to the bucket."""
    if not maximum:
        return covering(*size, bucket)
    width, height = brought_to(*size, target, unit) if measured(*size, unit) > maximum else size
    covers = width >= bucket.width and height >= bucket.height
    return (width, height) if covers else covering(*size, bucket)


def _shares(path: Path, digest: str, spec: DatasetSpec, resized: Size, bucket: Bucket) -> Shares:
    """Where the crops lie, by the crop style."""
    if spec.crop_style == "random":
        crops = range(spec.num_crops)
        return tuple((drawn(digest, f"across {number}"), drawn(digest, f"down {number}")) for number in crops)
    return _around_face(path, digest, resized, bucket) if spec.crop_style == "face" else FIXED[spec.crop_style]


def _views(resized: Size, bucket: Bucket, shares: Shares, flip: bool) -> tuple[Fit, ...]:
    """Each crop once, and then each mirrored."""
    fits = list(dict.fromkeys(crop_at(*resized, bucket, across, down) for across, down in shares))
    return tuple(fits + [fit._replace(mirrored=True) for fit in fits] * flip)


_shared_views = lru_cache(maxsize=MEMORY)(_views)


def _around_face(path: Path, digest: str, resized: Size, bucket: Bucket) -> Shares:
    """The crop with the largest face as near to its middle as it can be; the middle of the picture where there is none."""
    from .faces import detector, find_face

    detector()  # that there is none is not this file's fault
    try:
        face = find_face(path, digest)
    except JobError as error:
        raise Reject(str(error)) from None
    if face is None:
        return FIXED["center"]
    return tuple([tuple(share_around(*parts) for parts in zip(face, resized, bucket, strict=True))])
