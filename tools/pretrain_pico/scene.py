"""A scene is where, how large and on what colour a subject stands; it can be drawn and it can be said.

Everything that the pictures vary is named in the caption, and what is not said has one default (middle, medium, white),
so that a prompt fixes the picture up to nothing. That makes obedience measurable: a picture either shows the scene or
it does not.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "red": (226, 62, 58),
    "orange": (247, 152, 46),
    "yellow": (250, 222, 84),
    "green": (98, 180, 92),
    "blue": (86, 150, 226),
    "purple": (150, 98, 198),
    "pink": (248, 168, 200),
    "gray": (150, 154, 160),
    "black": (24, 24, 28),
}
# name -> (row, column) of the middle of the subject, as fractions of the free way from top to bottom and left to right
PLACES: dict[str, tuple[float, float]] = {
    "middle": (0.5, 0.5),
    "top left": (0.0, 0.0),
    "top": (0.0, 0.5),
    "top right": (0.0, 1.0),
    "left": (0.5, 0.0),
    "right": (0.5, 1.0),
    "bottom left": (1.0, 0.0),
    "bottom": (1.0, 0.5),
    "bottom right": (1.0, 1.0),
}
SIZES: dict[str, float] = {"small": 0.5, "medium": 0.875, "large": 1.2}  # glyph square / shorter side of the canvas
PREFIXES = ("", "a picture of ", "a ", "an emoji of ")
NAVY, CREAM = (24, 34, 84), (250, 236, 204)


@dataclass(frozen=True)
class Scene:
    """What a caption says besides the subject. Places other than the middle are drawn with small subjects only."""

    size: str = "medium"
    background: str = "white"
    place: str = "middle"


PLAIN = Scene()


def every_layout() -> list[Scene]:
    """The scenes on white: three sizes in the middle, and small in the eight other places."""
    return [Scene(size=size) for size in SIZES] + [Scene(size="small", place=place) for place in PLACES if place != "middle"]


def draw(glyph_hwc: np.ndarray, scene: Scene, width: int = 64, height: int = 64) -> Image.Image:
    """The RGB picture of a glyph (uint8 RGBA) in a scene on a canvas of width x height."""
    side = round(SIZES[scene.size] * min(width, height))
    subject = Image.fromarray(glyph_hwc, "RGBA").resize((side, side), Image.Resampling.LANCZOS)
    row, column = PLACES[scene.place]
    canvas = Image.new("RGB", (width, height), BACKGROUNDS[scene.background])
    canvas.paste(subject, (round(column * (width - side)), round(row * (height - side))), subject)
    return canvas


def caption(name: str, scene: Scene, prefix: str = "") -> str:
    """'a picture of small tiger on a red background in the top left': defaults are left unsaid."""
    words = prefix + ("" if scene.size == "medium" else f"{scene.size} ") + name
    if scene.background != "white":
        words += f" on a {scene.background} background"
    if scene.place != "middle":
        words += f" in the {scene.place}"
    return words


def random_scene(chance: random.Random) -> Scene:
    """A scene that mixes: any background, with any layout."""
    layout = chance.choice(every_layout())
    return Scene(layout.size, chance.choice(list(BACKGROUNDS)), layout.place)


def two_tone(picture: Image.Image) -> Image.Image:
    """The demo's style: navy ink on cream paper, more ink where the picture is darker or more colourful than white.

    Colourfulness (largest minus smallest channel) counts as darkness too, since by lightness alone a yellow face would
    leave no ink on the paper. A steep ramp keeps it graphic, and a few grey levels keep the edges from crumbling.
    """
    rgb = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0
    darkness = 1.0 - rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    colourfulness = rgb.max(axis=-1) - rgb.min(axis=-1)
    ink = np.clip((darkness + 0.35 * colourfulness - 0.1) / 0.7, 0.0, 1.0)[..., None]
    mixed = ink * np.array(NAVY, dtype=np.float32) + (1.0 - ink) * np.array(CREAM, dtype=np.float32)
    return Image.fromarray(mixed.round().astype(np.uint8))
