"""Which way up a picture and its mask are.

Cameras store pictures as the sensor lies and say in the EXIF orientation how to turn them. A mask is turned by its own tag
if it has one. Without, it was either drawn over the upright picture, as viewers and editors show it, or by a program that
took the stored pixels; a quarter turn shows in the shape which of them it was, and the mask is turned like its picture.
"""

from pathlib import Path

from PIL import Image, ImageOps

from ..errors import JobError

EXIF_ORIENTATION = 0x0112
SWAPS_AXES = frozenset({5, 6, 7, 8})  # values of the EXIF orientation that turn the picture by a quarter
SIXTEEN_BITS = frozenset({"I", "I;16", "I;16B"})

Size = tuple[int, int]  # width and height in pixels


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
    """The upright mask in 8 bits of luminance; what is transparent in it does not matter."""
    orientation = mask_orientation(mask, picture)
    with Image.open(mask) as file:
        grey = file.point(lambda value: value * (1 / 257)) if file.mode in SIXTEEN_BITS else file
        grey = grey.convert("L")
    grey.getexif()[EXIF_ORIENTATION] = orientation
    return ImageOps.exif_transpose(grey)


def _shape(path: Path) -> tuple[Size, int | None]:
    """The size as stored, and the EXIF orientation if the file has one."""
    try:
        with Image.open(path) as image:
            image.verify()  # closes the file, so it is opened again
        with Image.open(path) as image:
            return image.size, image.getexif().get(EXIF_ORIENTATION)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise JobError(f"picture {path} cannot be read ({error}); replace it or take it out of the folder") from None


def _turned(size: Size, orientation: int | None) -> Size:
    return (size[1], size[0]) if orientation in SWAPS_AXES else size


def same_shape(one: Size, other: Size) -> bool:
    """The same aspect, but for the rounding of either size to whole pixels."""
    (width, height), (other_width, other_height) = one, other
    return abs(width * other_height - height * other_width) <= (other_width + other_height) / 2 + (width + height) / 2
