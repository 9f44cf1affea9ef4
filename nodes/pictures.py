"""Pictures between files and ComfyUI's IMAGE: a (B, H, W, 3) float tensor in [0, 1]."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from ..trainer_core.data.colours import check_opened
from ..trainer_core.half_written import unfinished

if TYPE_CHECKING:
    from torch import Tensor

CONSTANT_TIME = 1_000_000_000  # in seconds since 1970: September 2001


def load_pictures(paths: Iterable[Path]) -> "Tensor":
    """Pictures as a batch, smaller ones in the middle of a black frame of the largest size."""
    pictures = [opened(path) for path in paths]
    size = max(picture.width for picture in pictures), max(picture.height for picture in pictures)
    return to_batch(_framed(picture, size) for picture in pictures)


def to_batch(pictures: Iterable[Image.Image]) -> "Tensor":
    """RGB pictures of one size as a batch."""
    import torch

    return torch.stack([torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0) for picture in pictures])


def from_batch(images_BHWC: "Tensor") -> list[Image.Image]:
    """The pictures of a batch, in RGB; ComfyUI's values outside [0, 1] are cut as its SaveImage does."""
    levels_BHWC = (images_BHWC[..., :3].cpu().float().clamp(0, 1) * 255).round().byte().numpy()
    return [Image.fromarray(levels_HWC) for levels_HWC in levels_BHWC]


def _framed(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    if picture.size == size:
        return picture
    frame = Image.new("RGB", size)
    frame.paste(picture, ((size[0] - picture.width) // 2, (size[1] - picture.height) // 2))
    return frame


def opened(path: Path) -> Image.Image:
    """In RGB. ValueError where it is too large to be a picture of ours."""
    with Image.open(path) as file:
        check_opened(file)
        return file.convert("RGB")


class Kept(NamedTuple):
    """Where the pictures of a batch are kept, and what goes with them."""

    pictures: Path
    masks: Path | None = None
    references: Path | None = None

    def fields(self) -> dict[str, str]:
        """As fields of a DatasetSpec."""
        folders = {"instance_data_dir": self.pictures, "mask_data_dir": self.masks, "reference_data_dir": self.references}
        return {name: str(folder) for name, folder in folders.items() if folder is not None}


def keep_batch(
    images_BHWC: "Tensor",
    captions: Sequence[str],
    datasets_dir: Path,
    masks_BHW: "Tensor | None" = None,
    references_BHWC: "Tensor | None" = None,
) -> Kept:
    """Write a batch as PNG files with captions beside them, or without any, and its masks and references into folders beside.

    The same batch is the same folders, written once.
    """
    pictures = from_batch(images_BHWC)
    masks = (
        None if masks_BHW is None else [mask.convert("L") for mask in from_batch(masks_BHW[..., None].expand(-1, -1, -1, 3))]
    )
    references = None if references_BHWC is None else from_batch(references_BHWC)
    digest = hashlib.sha256("\n".join(captions).encode())
    for kind, batch in (("", pictures), ("mask", masks or []), ("reference", references or [])):
        for picture in batch:
            digest.update(f"{kind}{picture.size}".encode() + picture.tobytes())
    folder = datasets_dir / digest.hexdigest()[:16]
    kept = Kept(
        folder,
        None if masks is None else folder.with_name(f"{folder.name}-masks"),
        None if references is None else folder.with_name(f"{folder.name}-references"),
    )
    for place, batch, texts in ((kept.masks, masks, ()), (kept.references, references, ()), (folder, pictures, captions)):
        if place is not None and not place.exists():
            _write_folder(place, batch or [], texts)
    return kept


def _write_folder(folder: Path, pictures: Sequence[Image.Image], captions: Sequence[str]) -> None:
    """The folder appears whole or not at all.

    Modification times are constant: they are part of what identifies a run, and the folder may be deleted and made again.
    """
    with unfinished(folder.parent) as new:
        new.mkdir()
        for index, picture in enumerate(pictures):
            picture.save(new / f"{index:04d}.png")
        for index, caption in enumerate(captions):
            (new / f"{index:04d}.txt").write_text(caption + "\n", encoding="utf-8")
        for path in new.iterdir():
            os.utime(path, (CONSTANT_TIME, CONSTANT_TIME))
        os.replace(new, folder)
