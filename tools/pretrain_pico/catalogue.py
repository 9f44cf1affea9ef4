"""The subjects pico knows: single emoji of Noto Color Emoji, each with its Unicode CLDR short name, and its glyph.

One emoji is one subject. Only single code points (with or without the emoji variation selector) are taken: sequences
(families, flags, skin tones) are mostly near-copies of them, which would spend a small model's capacity on telling
copies apart. Glyphs are cut from the colour bitmaps of the font, centred by their visible pixels and kept as RGBA, so
that any background and any place can be put under them afterwards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT_PATH = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
BITMAP_SIZE = 109  # the one size of the colour bitmaps in the font
GLYPH_SIZE = 136  # side of the square that a glyph is cut to, pixels
VARIATION_SELECTOR = "\ufe0f"


@dataclass(frozen=True)
class Subject:
    """An emoji and the words for it."""

    character: str
    name: str


def spoken_name(cldr_name: str) -> str:
    """':face_with_head-bandage:' -> 'face with head bandage': lower case, only letters, digits and spaces."""
    words = cldr_name.strip(":").replace("_", " ").replace("\u2019", "").lower()
    return re.sub(r"[^\w]+", " ", words).strip()


def subjects() -> list[Subject]:
    """All single-code-point emoji with a picture of their own, by name, in a fixed order."""
    import emoji

    found: dict[str, str] = {}
    for character, data in sorted(emoji.EMOJI_DATA.items()):
        is_single = len(character.replace(VARIATION_SELECTOR, "")) == 1
        if data["status"] == emoji.STATUS["fully_qualified"] and is_single and "skin_tone" not in data["en"]:
            found.setdefault(spoken_name(data["en"]), character)
    return [Subject(character, name) for name, character in sorted(found.items()) if has_glyph(character)]


def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT_PATH), BITMAP_SIZE)


def glyph(character: str, font: ImageFont.FreeTypeFont | None = None) -> Image.Image:
    """The emoji as an RGBA picture of GLYPH_SIZE squared, its visible box centred, its size as the font has it."""
    font = font or _font()
    canvas = Image.new("RGBA", (2 * GLYPH_SIZE, 2 * GLYPH_SIZE), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((GLYPH_SIZE // 2, GLYPH_SIZE // 2), character, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"the font draws nothing for {character!r}: it is older than the emoji list")
    centre_x, centre_y = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
    left, top = centre_x - GLYPH_SIZE // 2, centre_y - GLYPH_SIZE // 2
    return canvas.crop((left, top, left + GLYPH_SIZE, top + GLYPH_SIZE))


def has_glyph(character: str) -> bool:
    """Whether the font has a colour bitmap for it (a missing one is drawn as an empty or grey box)."""
    box = _font().getbbox(character.replace(VARIATION_SELECTOR, ""))
    return box[2] - box[0] >= BITMAP_SIZE and _font().getmask(character).getbbox() is not None


def glyph_array(chosen: list[Subject]) -> np.ndarray:
    """uint8 [N, GLYPH_SIZE, GLYPH_SIZE, 4]: the glyphs of the subjects in their order."""
    font = _font()
    return np.stack([np.asarray(glyph(subject.character, font)) for subject in chosen])
