"""Draw the icon and the banner for ComfyUI's registry: python -m tools.registry_pictures

Two nodes and the wire between them, over the curve of a loss that comes down: four times as large as they are wanted, then made
smaller, which smooths the edges. The letters are those that matplotlib brings along.
"""

import math
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

DOCS = Path(__file__).parents[1] / "docs"
FINE = 4  # drawn so many times larger
DARK, PANEL, EDGE = (24, 26, 33), (45, 49, 61), (92, 99, 120)
WIRE, CURVE, DOT = (178, 132, 255), (255, 176, 66), (255, 226, 170)
ICON, BANNER = (400, 400), (1260, 540)  # square; 21 to 9


def draw_mark(draw: ImageDraw.ImageDraw, left: float, top: float, size: float) -> None:
    """The mark in a square of this size."""

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x * size, top + y * size

    width = round(size * 0.022)
    for x, y, wide, high in ((0.10, 0.14, 0.30, 0.26), (0.60, 0.24, 0.30, 0.26)):
        draw.rounded_rectangle((*at(x, y), *at(x + wide, y + high)), size * 0.04, PANEL, EDGE, width)
        draw.line((*at(x + 0.05, y + 0.08), *at(x + 0.20, y + 0.08)), EDGE, width)
    for share in _shares(600):
        _dot(draw, at(0.40 + 0.20 * share, 0.29 + 0.08 * (1 - math.cos(math.pi * share)) / 2), width, WIRE)
    for x, y in ((0.40, 0.29), (0.60, 0.37)):
        _dot(draw, at(x, y), size * 0.028, WIRE)
    curve = [at(0.12 + 0.76 * share, 0.56 + 0.30 * (1 - math.exp(-3.2 * share))) for share in _shares(2000)]
    for point in curve:
        _dot(draw, point, width, CURVE)
    _dot(draw, curve[-1], size * 0.036, DOT)


def _shares(count: int) -> list[float]:
    return [number / count for number in range(count + 1)]


def _dot(draw: ImageDraw.ImageDraw, center: tuple[float, float], radius: float, colour: tuple[int, int, int]) -> None:
    x, y = center
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)


def icon() -> Image.Image:
    image = Image.new("RGBA", (ICON[0] * FINE, ICON[1] * FINE))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((0, 0, image.width - 1, image.height - 1), image.width * 0.16, DARK)
    draw_mark(draw, 0, 0, image.width)
    return image.resize(ICON, Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    image = Image.new("RGB", (BANNER[0] * FINE, BANNER[1] * FINE), DARK)
    draw = ImageDraw.Draw(image)
    draw_mark(draw, 30 * FINE, 30 * FINE, 480 * FINE)
    bold, plain = (font_manager.findfont(f"DejaVu Sans:{weight}") for weight in ("bold", "normal"))
    draw.text((560 * FINE, 190 * FINE), "FLUX LoRA Studio", DOT, ImageFont.truetype(bold, 64 * FINE))
    words = "Train a LoRA on the canvas where you use it."
    draw.text((562 * FINE, 290 * FINE), words, (190, 196, 210), ImageFont.truetype(plain, 27 * FINE))
    return image.resize(BANNER, Image.Resampling.LANCZOS)


def main() -> None:
    for name, picture in (("icon", icon()), ("banner", banner())):
        picture.quantize(64).save(DOCS / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
