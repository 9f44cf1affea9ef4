"""One look at a picture file: whether it can be decoded whole, how large it is, and what tells it from others."""

import hashlib
from pathlib import Path

from PIL import Image

from ..errors import JobError
from .sample import Facts, Reject
from .upright import EXIF_ORIENTATION, upright_size


def look_at(path: Path) -> Facts:
    """The facts of a picture file; Reject says why it cannot be trained on."""
    try:
        width, height = upright_size(path)
        with Image.open(path) as image:
            orientation, has_alpha = image.getexif().get(EXIF_ORIENTATION, 1), image.has_transparency_data
    except JobError as error:
        raise Reject(str(error)) from None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Facts(width, height, digest, orientation=orientation, has_alpha=has_alpha)
