"""Which way up a picture and its mask are.

Cameras store pictures as the sensor lies and say in the EXIF orientation how to turn them. A mask is turned by its own tag
if it has one. Without, it was either drawn over the upright picture, as viewers and editors show it, or by a program that
took the stored pixels; a quarter turn shows in the shape which of them it was, and the mask is turned like its picture.

Here too is how a picture file is opened, and what is said of one that cannot be: a file that lacks its decoder is told from a
damaged one by its first bytes, whatever its name ends with.
"""

import struct
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import JobError
from .colours import MAX_PIXELS, check_opened, to_alpha, to_eight_bits

# what Pillow raises of a file that is damaged, strange or too large
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)
JXL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")
EXIF_ORIENTATION = 0x0112
SWAPS_AXES = frozenset({5, 6, 7, 8})  # values of the EXIF orientation that turn the picture by a quarter

Size = tuple[int, int]  # width and height in pixels


def open_picture(path: Path) -> Image.Image:
    """The picture, opened and not decoded, as `Image.open`; with the decoder for JPEG XL where one is installed."""
    if path.suffix.lower() == ".jxl":
        register_jxl()
    try:
        return Image.open(path)
    except RuntimeError as error:  # how the plug-in for JPEG XL tells of a damaged file
        raise OSError(str(error).partition("\n")[0]) from None


def explain_unreadable(path: Path, error: Exception) -> str:
    """What to tell the user of a picture on which Pillow raised this error (one of UNREADABLE): why, and what to do."""
    reason, mend = str(error) or type(error).__name__, "replace it or take it out of the folder"
    if isinstance(error, Image.DecompressionBombError):
        reason = f"it is above the limit of {MAX_PIXELS / 1e6:.1f} megapixels; scale it down"
    elif isinstance(error, UnidentifiedImageError):
        reason = lacking_decoder(path) or reason
    return f"picture {path} cannot be read ({reason}); {mend}"


def upright_size(path: Path) -> Size:
    """Width and height after the EXIF orientation; JobError when the file cannot be read as a picture."""
    stored, orientation = _shape(path)
    return _turned(stored, orientation)


def check_mask(mask: Path, picture: Path) -> None:
    """JobError when the mask has another shape than its picture, or cannot be read. Another size is fine."""
    mask_stored, _ = _shape(mask)
    size, picture_size = _turned(mask_stored, mask_orientation(mask, picture)), upright_size(picture)
    if not same_shape(size, picture_size):
        raise JobError(
            f"mask {mask} is {size[0]}x{size[1]}, but its picture {picture} is {picture_size[0]}x{picture_size[1]}; "
            "give it the picture's shape, in any size"
        )


def mask_orientation(mask: Path, picture: Path) -> int:
    """How the mask is to be turned, as an EXIF orientation; 1 is not at all."""
    mask_stored, own = _shape(mask)
    if own is not None:
        return own
    stored, orientation = _shape(picture)
    if same_shape(mask_stored, _turned(stored, orientation)) or not same_shape(mask_stored, stored):
        return 1
    return orientation or 1


def load_mask(mask: Path, picture: Path) -> Image.Image:
    """The upright mask in 8 bits: its luminance, or how opaque the picture is where the picture is its own mask.

    JobError when it cannot be decoded.
    """
    orientation = mask_orientation(mask, picture)
    try:
        with open_picture(mask) as file:
            grey = to_alpha(file) if mask == picture else to_eight_bits(file).convert("L")
    except UNREADABLE as error:
        raise JobError(explain_unreadable(mask, error)) from None
    grey.getexif()[EXIF_ORIENTATION] = orientation
    return ImageOps.exif_transpose(grey)


def _shape(path: Path) -> tuple[Size, int | None]:
    """The size as stored, and the EXIF orientation if the file has one."""
    try:
        with open_picture(path) as image:
            image.verify()  # closes the file, so it is opened again
        with open_picture(path) as image:
            check_opened(image)
            return image.size, image.getexif().get(EXIF_ORIENTATION)
    except UNREADABLE as error:
        raise JobError(explain_unreadable(path, error)) from None


@lru_cache(maxsize=1)
def register_jxl() -> None:
    """Pillow's plug-ins make themselves known when they are imported; this one is optional."""
    try:
        import_module("pillow_jxl")
    except ImportError:
        return


def lacking_decoder(path: Path) -> str:
    """What to install for a file that is a picture of a known kind, or what kind of file it is; empty if it is unknown."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        return str(error)
    brands = start[8:32] if start[4:8] == b"ftyp" else b""
    if not start:
        return "it is empty"
    if start.startswith(JXL):
        return "it is JPEG XL, for which Pillow needs a plug-in: pip install pillow-jxl-plugin"
    if b"avif" in brands or b"avis" in brands:
        return 'it is AVIF, which this Pillow cannot decode: pip install "pillow>=11.3"'
    if b"heic" in brands or b"heix" in brands or b"mif1" in brands:
        return "it is HEIC, which Pillow cannot decode; save it as jpg or png"
    return ""


def _turned(size: Size, orientation: int | None) -> Size:
    return (size[1], size[0]) if orientation in SWAPS_AXES else size


def same_shape(one: Size, other: Size) -> bool:
    """The same aspect, but for the rounding of either size to whole pixels."""
    (width, height), (other_width, other_height) = one, other
    return abs(width * other_height - height * other_width) <= (other_width + other_height) / 2 + (width + height) / 2
