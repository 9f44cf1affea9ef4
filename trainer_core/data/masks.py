"""Masks: which part of a picture is trained on.

A mask is a picture of its own in another folder, under the same path and name, or the alpha channel of the picture. It goes
through the same turn, resize and crop as its picture, is averaged down to the latent's cells, and weighs their loss:

    weight = background + (1 - background) * mask, divided by its mean where the area is to be normalised

Needs no torch, so that the index of a dataset can be shown before anything heavy is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..specs.dataset import DatasetSpec
from .companions import companion_folder, find_companions


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
    return companion_folder(spec.mask_data_dir)


def find_masks(spec: DatasetSpec, folder: Path, pictures: Sequence[Path]) -> dict[Path, Mask]:
    """The mask of each picture below `folder`; JobError names the first that have none, or two. Empty without masks."""
    masks_dir = mask_folder(spec)
    if masks_dir is None:
        return {}
    mend = "add a white picture to train on all of it"
    found = find_companions(masks_dir, folder, pictures, kind="mask", dataset_id=spec.id, mend=mend)
    return {picture: Mask(file.path, spec.mask_background_weight, spec.mask_normalise_area) for picture, file in found.items()}
