"""From a picture file to pixels at its bucket's size."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..errors import JobError
from .buckets import Bucket, Fit


def load_rgb(path: Path, background: str = "white") -> Image.Image:
    """The upright picture, the background showing through where it is transparent; JobError when it cannot be decoded."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA"))
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise JobError(f"picture {path} cannot be read ({error}); replace it or take it out of the folder") from None


def apply_fit(image: Image.Image, fit: Fit, bucket: Bucket) -> Image.Image:
    """Resized (Lanczos), cropped to the bucket and mirrored; a mask of any size goes where its picture goes."""
    resized = image.resize((fit.width, fit.height), Image.Resampling.LANCZOS)
    cropped = resized.crop((fit.left, fit.top, fit.left + bucket.width, fit.top + bucket.height))
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
