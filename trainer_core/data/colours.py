"""From whatever way a file stores colour to 8 bits of red, green and blue, or of grey.

Pillow's own conversion clips deep pictures where they should be scaled, and takes every JPEG in CMYK for one of Adobe's, which
are stored inverted. Sixteen bits are divided by 257, so that white stays white. Floating point is 0 to 1 or 0 to 255, as its
largest value tells. Colour profiles are not applied: a picture is shown to the VAE as its numbers are. Needs no torch.
"""

from PIL import Image, ImageChops

MAX_PIXELS = 89_478_485  # where Pillow begins to warn of decompression bombs
UNKNOWN_MODES = frozenset({"LAB", "HSV"})


def check_opened(image: Image.Image) -> None:
    """ValueError, with the mend, where a picture (opened, not decoded) is too large, or holds what has no 8-bit colour."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        megapixels, limit = width * height / 1e6, MAX_PIXELS / 1e6
        raise ValueError(f"{width}x{height} are {megapixels:.1f} megapixels, above the limit of {limit:.1f}; scale it down")
    if image.mode in UNKNOWN_MODES:
        raise ValueError(f"its colours are stored as {image.mode}; save it as RGB")
    if image.mode in ("I", "F"):
        _scale_of(image)


def to_rgb(image: Image.Image, background: str) -> Image.Image:
    """8-bit RGB, the background showing through where the picture is transparent; ValueError as of `check_opened`."""
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow inverted it as if it came from Adobe
    image = to_eight_bits(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA"))
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def to_alpha(image: Image.Image) -> Image.Image:
    """How opaque the picture is, in 8 bits; white all over where nothing of it is transparent."""
    image = to_eight_bits(image)
    return image.convert("RGBA").getchannel("A") if image.has_transparency_data else Image.new("L", image.size, 255)


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen bits, integers and floating point as 8 bits of grey, with the alpha that a transparent grey makes; others as
    they are. ValueError as of `check_opened`."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    scale = _scale_of(image)
    clear = image.info.get("transparency")
    values = image if image.mode == "F" else image.convert("I")
    grey = values.point(lambda value: value * scale + 0.5).convert("L")
    grey.info.pop("transparency", None)
    if clear is not None:
        above, below = values.point(lambda value: value * 1 - clear), values.point(lambda value: value * -1 + clear)
        other = ImageChops.lighter(above.convert("L"), below.convert("L"))  # 0 only where the value is the clear one
        grey.putalpha(other.point(lambda difference: 255 if difference else 0))
    return grey


def _scale_of(image: Image.Image) -> float:
    """What its values are multiplied by to become 0 to 255; ValueError where that cannot be known."""
    if image.mode.startswith("I;16"):
        return 1 / 257
    least, most = image.getextrema()
    limit = 65535 if image.mode == "I" else 255
    if not (least >= 0 and most <= limit):  # so that NaN is refused too
        raise ValueError(f"its values go from {least:g} to {most:g}, beyond 0 to {limit}; save it with 8 or 16 bits")
    if image.mode == "I":
        return 1 / 257
    return 255.0 if most <= 1 else 1.0
