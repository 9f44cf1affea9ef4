"""Masks: which part of a picture is trained on.

A mask is a picture of its own in another folder, under the same path and name, or the alpha channel of the picture. It goes
through the same turn, resize and crop as its picture, is averaged down to the latent's cells, and weighs their loss:

    weight = background + (1 - background) * mask, divided by its mean where the area is to be normalised

Needs no torch, so that the index of a dataset can be shown before anything heavy is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import JobError
from ..run_dir import PICTURE_SUFFIXES, files_below
from ..specs.dataset import DatasetSpec

MAX_NAMED = 3


@dataclass(frozen=True)
class Mask:
    """A mask's file, and how it counts."""

    path: Path  # the picture itself where its alpha is the mask
    background_weight: float
    normalise_area: bool


def alpha_mask(spec: DatasetSpec, path: Path) -> Mask | None:
    """A picture that has alpha as its own mask, where the dataset takes it for one; else None."""
    if not spec.alpha_is_mask:
        return None
    return Mask(path, spec.mask_background_weight, spec.mask_normalise_area)


def mask_folder(spec: DatasetSpec) -> Path | None:
    """Where the masks of a dataset are, if it has any."""
    given = spec.mask_data_dir.strip()
    return Path(given).expanduser() if given else None


def find_masks(spec: DatasetSpec, folder: Path, pictures: Sequence[Path]) -> dict[Path, Mask]:
    """The mask of each picture below `folder`; JobError names the first that have none, or two. Empty without masks."""
    masks_dir = mask_folder(spec)
    if masks_dir is None:
        return {}
    if not masks_dir.is_dir():
        raise JobError(f"dataset {spec.id!r}: there is no folder {masks_dir.absolute()} with masks; correct mask_data_dir")
    by_name: dict[Path, Path] = {}
    for path in files_below(masks_dir, PICTURE_SUFFIXES):
        other = by_name.setdefault(path.relative_to(masks_dir).with_suffix(""), path)
        if other != path:
            raise JobError(f"dataset {spec.id!r}: {other} and {path} are masks of the same name; take one out")
    names = {picture: picture.relative_to(folder).with_suffix("") for picture in pictures}
    missing = [str(picture) for picture, name in names.items() if name not in by_name]
    if missing:
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        raise JobError(
            f"dataset {spec.id!r}: no mask in {masks_dir.absolute()} for {', '.join(missing[:MAX_NAMED])}{more}; "
            "add a white picture to train on all of it"
        )
    return {
        picture: Mask(by_name[name], spec.mask_background_weight, spec.mask_normalise_area) for picture, name in names.items()
    }
