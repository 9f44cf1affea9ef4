"""Pictures between files and ComfyUI's IMAGE: a (B, H, W, 3) float tensor in [0, 1]."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

CONSTANT_TIME = 1_000_000_000  # in seconds since 1970: September 2001


def load_pictures(paths: Iterable[Path]) -> "Tensor":
    """Pictures of one size as a batch."""
    return to_batch(_opened(path) for path in paths)


def to_batch(pictures: Iterable[Image.Image]) -> "Tensor":
    """RGB pictures of one size as a batch."""
    import torch

    return torch.stack([torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0) for picture in pictures])


def from_batch(images_BHWC: "Tensor") -> list[Image.Image]:
    """The pictures of a batch, in RGB; ComfyUI's values outside [0, 1] are cut as its SaveImage does."""
    levels_BHWC = (images_BHWC[..., :3].cpu().float().clamp(0, 1) * 255).round().byte().numpy()
    return [Image.fromarray(levels_HWC) for levels_HWC in levels_BHWC]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as file:
        return file.convert("RGB")


def keep_batch(images_BHWC: "Tensor", captions: Sequence[str], datasets_dir: Path) -> Path:
    """Write a batch as PNG files with captions beside them, or without any; the same batch is the same folder, written once.

    Modification times are constant: they are part of what identifies a run, and the folder may be deleted and made again.
    """
    pictures = from_batch(images_BHWC)
    digest = hashlib.sha256("\n".join(captions).encode())
    for picture in pictures:
        digest.update(f"{picture.size}".encode() + picture.tobytes())
    folder = datasets_dir / digest.hexdigest()[:16]
    if folder.exists():
        return folder
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for index, picture in enumerate(pictures):
        picture.save(temporary / f"{index:04d}.png")
    for index, caption in enumerate(captions):
        (temporary / f"{index:04d}.txt").write_text(caption + "\n", encoding="utf-8")
    for path in temporary.iterdir():
        os.utime(path, (CONSTANT_TIME, CONSTANT_TIME))
    os.replace(temporary, folder)
    return folder
