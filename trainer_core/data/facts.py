"""One look at a picture file: whether it can be decoded whole, how large it is, and what tells it from others.

The file is read once, and decoded to its last row: a cut-off JPEG has a good header and passes `verify()`, and would stop the
run hours later. A large JPEG is decoded small (the decoder still reads every block of it), so a look costs little. Whatever
the bytes lead Pillow's readers to, what comes out is facts or a Reject in words.

The look of a picture is its difference hash: shrunk to 9x8 grey pixels, one bit for each pixel darker than its right
neighbour. It survives resizing, recompression and small edits of brightness.
"""

import hashlib
import os
from codecs import getincrementaldecoder
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Lock

from PIL import Image, ImageOps, UnidentifiedImageError

from .colours import MAX_PIXELS, check_opened, to_eight_bits
from .find import kind_of, words_of
from .sample import Facts, Reject
from .upright import EXIF_ORIENTATION, SWAPS_AXES, lacking_decoder, register_jxl

MIN_EDGE, MAX_EDGE = 8, 16_384  # pixels: one cell of a latent, and the longest edge that WebP can hold
MAX_BYTES = 2**30
DRAWINGS = frozenset({"EPS", "WMF", "EMF"})  # Pillow would call another program to paint these
SMALL = (64, 64)  # large JPEGs are decoded to no less than this
LARGE_PIXELS, LARGE_BYTES = 2**24, 2**26  # such pictures are looked at one after another
MEND = "replace it or take it out of the folder"

_large = Lock()


class Unreadable(Reject):
    """A file that could not be read this time, for a reason that is not in its bytes."""


def look_at(path: Path) -> Facts:
    """The facts of a picture file; Reject says why it cannot be trained on. Never blocks on a pipe."""
    data = _read(path)
    if path.suffix.lower() == ".jxl":
        register_jxl()
    try:
        with Image.open(BytesIO(data)) as image, _in_turn(image, data):
            return _facts(image, data)
    except Reject:
        raise
    except MemoryError:
        raise Unreadable(f"there was not enough memory to decode it; {MEND}") from None
    except Exception as error:  # damaged bytes lead Pillow's readers to anything, from OSError to IndexError and struct.error
        raise Reject(f"{_explain(error, data, path)}; {MEND}") from None


def _facts(image: Image.Image, data: bytes) -> Facts:
    """Of an opened picture, which is decoded here; Reject, or whatever Pillow raises, where it cannot be used."""
    if image.format in DRAWINGS:
        raise Reject(f"holds a drawing ({image.format}), not pixels; save it as PNG or take it out of the folder")
    try:
        check_opened(image)
    except ValueError as error:
        raise Reject(str(error)) from None
    width, height = image.size
    _check_size(width, height)
    orientation = image.getexif().get(EXIF_ORIENTATION)
    if orientation not in range(2, 9):
        orientation = 1
    image.draft("L", SMALL)
    image.load()
    has_alpha = image.has_transparency_data and _has_clear_pixels(image)
    grey = to_eight_bits(image).convert("L")
    look = _difference_hash(ImageOps.exif_transpose(grey) if orientation > 1 else grey)
    if orientation in SWAPS_AXES:
        width, height = height, width
    return Facts(width, height, hashlib.sha256(data).hexdigest(), look, orientation, has_alpha)


def _read(path: Path) -> bytes:
    """All bytes of a regular file; Unreadable where it is something else or the system refuses."""
    try:
        told = os.stat(path)
        if other := kind_of(told.st_mode):
            raise Unreadable(f"{other}; take it out of the folder")
        if told.st_size > MAX_BYTES:
            raise Reject(f"holds {told.st_size / 2**30:.1f} GiB; at most {MAX_BYTES / 2**30:g} are read; {MEND}")
        with open(path, "rb", buffering=0) as file:  # half the calls to the system, each of which lets another thread in
            data = file.read(told.st_size)
            return data if len(data) == told.st_size else data + file.readall()
    except OSError as error:
        raise Unreadable(f"cannot be read: {words_of(error)}") from None


def _check_size(width: int, height: int) -> None:
    """Reject before anything is decoded that would take all memory, or that holds nothing."""
    if min(width, height) < MIN_EDGE:
        raise Reject(f"is only {width}x{height} pixels; nothing can be learned from less than {MIN_EDGE}; {MEND}")
    if max(width, height) > MAX_EDGE:
        raise Reject(f"is {width}x{height} pixels; at most {MAX_EDGE} a side are read; make it smaller")


@contextmanager
def _in_turn(image: Image.Image, data: bytes) -> Iterator[None]:
    """One large picture at a time, however many threads look, so that they do not take all memory together."""
    if image.width * image.height <= LARGE_PIXELS and len(data) <= LARGE_BYTES:
        yield
    else:
        with _large:
            yield


def _has_clear_pixels(image: Image.Image) -> bool:
    alpha = image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
    return alpha.getchannel("A").getextrema()[0] < 255


def _difference_hash(grey: Image.Image) -> int:
    """64 bits, row by row."""
    pixels = grey.resize((9, 8), Image.Resampling.BOX).tobytes()
    bits = 0
    for row in range(0, 72, 9):
        for left in range(row, row + 8):
            bits = bits << 1 | (pixels[left] < pixels[left + 1])
    return bits


def _explain(error: Exception, data: bytes, path: Path) -> str:
    """What is wrong with these bytes, in words."""
    if not data:
        return "is empty (0 bytes)"
    if isinstance(error, Image.DecompressionBombError):
        return f"has more pixels than are read ({MAX_PIXELS / 1e6:.0f} million)"
    if isinstance(error, UnidentifiedImageError):
        if _is_text(data[:512]):
            return "is a text file, not a picture"
        return lacking_decoder(path) or "is no picture, or its first bytes are damaged"
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return "is cut off: its end is missing"
    return f"is damaged and cannot be decoded ({str(error) or type(error).__name__})"


def _is_text(data: bytes) -> bool:
    """Whether this may be the beginning of a text; pictures have bytes below the tabulator in their first words."""
    try:
        getincrementaldecoder("utf-8")().decode(data)  # the last letter may be cut
    except UnicodeDecodeError:
        return False
    return min(data) >= ord("\t")
