"""From a picture file to pixels at its bucket's size."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..errors import JobError
from .buckets import Bucket, Fit
from .colours import check_opened, to_rgb
from .upright import EXIF_ORIENTATION, UNREADABLE, explain_unreadable, open_picture


def load_rgb(path: Path, background: str = "white") -> Image.Image:
    """The upright picture, the background showing through where it is transparent; JobError when it cannot be decoded.

    Of an animated one the first frame.
    """
    try:
        with open_picture(path) as file:
            check_opened(file)
            colours = to_rgb(file, background)
            colours.getexif()[EXIF_ORIENTATION] = file.getexif().get(EXIF_ORIENTATION, 1)
            ImageOps.exif_transpose(colours, in_place=True)
            return colours
    except UNREADABLE as error:
        raise JobError(explain_unreadable(path, error)) from None


def apply_fit(image: Image.Image, fit: Fit, bucket: Bucket) -> Image.Image:
    """Resized (Lanczos), cropped to the bucket and mirrored; a mask of any size goes where its picture goes.

    Only what the crop keeps is computed, so a picture of 1x30000 pixels is no larger than its bucket on the way.
    """
    across, down = image.width / fit.width, image.height / fit.height
    right, bottom = fit.left + bucket.width, fit.top + bucket.height
    box = (
        fit.left * across,
        fit.top * down,
        image.width if right == fit.width else right * across,
        image.height if bottom == fit.height else bottom * down,
    )
    cropped = image.resize(bucket, Image.Resampling.LANCZOS, box=box)
    return ImageOps.mirror(cropped) if fit.mirrored else cropped


def to_tensor(image: Image.Image) -> torch.Tensor:
    """(3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32).copy()).permute(2, 0, 1) / 127.5 - 1


def to_cells(mask: Image.Image, cell: int) -> torch.Tensor:
    """(H, W) float32 in [0, 1]: the average grey of each square of `cell` pixels."""
    grey = torch.from_numpy(np.asarray(mask, dtype=np.float32).copy()) / 255
    return torch.nn.functional.avg_pool2d(grey.unsqueeze(0), cell)[0]


def to_image(pixels_CHW: torch.Tensor) -> Image.Image:
    """The inverse of `to_tensor`, clipped and rounded to 8 bits."""
    scaled = ((pixels_CHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(scaled.permute(1, 2, 0).cpu().numpy())
