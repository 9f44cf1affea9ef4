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


def crop_to_bucket(image: Image.Image, bucket: Bucket) -> Image.Image:
    """Resized (Lanczos) to cover the bucket, then cropped in the centre."""
    fit = fit_centre(*image.size, bucket)
    resized = image.resize((fit.width, fit.height), Image.Resampling.LANCZOS)
    return resized.crop((fit.left, fit.top, fit.left + bucket.width, fit.top + bucket.height))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """(3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32).copy()).permute(2, 0, 1) / 127.5 - 1


def to_image(pixels_CHW: torch.Tensor) -> Image.Image:
    """The inverse of `to_tensor`, clipped and rounded to 8 bits."""
    scaled = ((pixels_CHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(scaled.permute(1, 2, 0).cpu().numpy())
