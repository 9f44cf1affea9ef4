"""References: the picture that each picture of a dataset starts from, as kontext takes it.

A reference is a picture of its own in another folder, under the same path and name. Strict, it goes through the very resize,
crop and mirroring of its picture, so that the two lie exactly over each other and what stays the same stays in its place.
Loose, it has a bucket of its own at the same resolution, by its own aspect, and is only mirrored with its picture.

Needs no torch, so that the index of a dataset can be shown before anything heavy is loaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import JobError
from ..specs.dataset import DatasetSpec
from .buckets import Bucket, Fit
from .companions import companion_folder, find_companions
from .crops import place
from .find import Found
from .sample import Facts, Reference, Reject
from .upright import same_shape

UNCROPPED = {  # what DatasetSpec says of the pictures, and not of a loose reference
    "crop": False,
    "crop_style": "center",
    "num_crops": 1,
    "horizontal_flip": False,
    "minimum_image_size": 0.0,
    "maximum_image_size": 0.0,
    "target_downsample_size": 0.0,
    "minimum_aspect_ratio": 0.0,
    "maximum_aspect_ratio": 0.0,
}


class ReferenceFile(NamedTuple):
    """A reference's file and what one look at it told, before it is brought to a bucket."""

    path: Path
    facts: Facts


def reference_folder(spec: DatasetSpec) -> Path | None:
    """Where the references of a dataset are, if it has any."""
    return companion_folder(spec.reference_data_dir)


def find_references(spec: DatasetSpec, folder: Path, pictures: Sequence[Path]) -> dict[Path, Found]:
    """The reference of each picture below `folder`; JobError names the first that have none, or two. Else empty."""
    references_dir = reference_folder(spec)
    if references_dir is None:
        return {}
    mend = "add what each of them starts from, or put them into a dataset without reference_data_dir"
    return find_companions(references_dir, folder, pictures, kind="reference", dataset_id=spec.id, mend=mend)


def check_reference(path: Path, own: Facts | str, picture: Path, facts: Facts, spec: DatasetSpec) -> ReferenceFile:
    """The reference of this picture, with `own` facts, or the reason why it has none.

    Reject where its file cannot be read; JobError where it is to lie over its picture but has another shape.
    """
    if isinstance(own, str):
        raise Reject(f"its reference {path} {own}")
    size, picture_size = ((one.width, one.height) for one in (own, facts))
    if spec.reference_geometry == "strict" and not same_shape(size, picture_size):
        raise JobError(
            f"reference {path} is {size[0]}x{size[1]}, but its picture {picture} is {picture_size[0]}x{picture_size[1]}; give "
            "it the picture's shape, in any size, or set reference_geometry to 'loose'"
        )
    return ReferenceFile(path, own)


def place_reference(
    file: ReferenceFile, spec: DatasetSpec, resolution: float, grid: int, bucket: Bucket, views: tuple[Fit, ...]
) -> Reference:
    """The reference of a picture that is brought to this bucket in these ways. A fit resizes to absolute sizes, so that of the
    picture puts a strict reference of any size where the picture is."""
    if spec.reference_geometry == "loose":
        bucket, (fit, *_) = place(file.path, file.facts, spec.model_copy(update=UNCROPPED), resolution, grid)
        views = tuple(fit._replace(mirrored=view.mirrored) for view in views)
    return Reference(file.path, file.facts, bucket, views)
