"""From a picture file to pixels at its bucket's size."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..errors import JobError
from .buckets import Bucket, fit_centre

PAPER = (255, 255, 255)  # what shows through transparent pictures


def load_rgb(path: Path) -> Image.Image:
    """The upright picture without transparency; JobError when it cannot be decoded."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, PAPER), image.convert("RGBA"))
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise JobError(f"picture {path} cannot be read ({error}); replace it or take it out of the folder") from None


def crop_to_bucket(image: Image.Image, bucket: Bucket, like: tuple[int, int] | None = None) -> Image.Image:
    """Resized (Lanczos) to cover the bucket, then cropped in the centre.

    `like` is the size in pixels that decides how, if it is not the image's own: a mask goes where its picture goes.
    """
    fit = fit_centre(*(like or image.size), bucket)
    resized = image.resize((fit.width, fit.height), Image.Resampling.LANCZOS)
    return resized.crop((fit.left, fit.top, fit.left + bucket.width, fit.top + bucket.height))


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
