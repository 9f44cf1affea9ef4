"""Draw the demo's pictures: python -m tools.pretrain_pico.demo_pictures --data DIR  (seconds).

demo/pictures: sixteen emoji in the two-tone style, on square, landscape and portrait canvases, each with a caption in
the language of the base and no word about the style: the style is what a LoRA has to learn. demo/unseen: subjects that
are not among them, as the base draws them (original) and in the style (styled), by which the learning is measured.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from . import data, files
from .catalogue import Subject
from .scene import CREAM, NAVY, PLAIN, PREFIXES, caption, draw, two_tone

DEMO_DIR = Path(__file__).resolve().parents[2] / "trainer_core" / "pico" / "demo"
SQUARE, LANDSCAPE, PORTRAIT = (160, 160), (160, 104), (104, 160)
TRAINED = {
    "tiger face": SQUARE,
    "sailboat": PORTRAIT,
    "teapot": LANDSCAPE,
    "sunflower": PORTRAIT,
    "red apple": SQUARE,
    "locomotive": LANDSCAPE,
    "owl": SQUARE,
    "guitar": PORTRAIT,
    "alarm clock": SQUARE,
    "whale": LANDSCAPE,
    "grinning face with big eyes": SQUARE,
    "castle": LANDSCAPE,
    "mushroom": PORTRAIT,
    "rocket": SQUARE,
    "blue book": SQUARE,
    "octopus": SQUARE,
}
UNSEEN = (
    "dog face", "cat face", "panda", "fox", "frog", "lion", "monkey face", "pig face", "rabbit face", "bear", "penguin",
    "turtle", "fish", "butterfly", "lady beetle", "strawberry", "lemon", "watermelon", "carrot", "pizza", "hamburger",
    "doughnut", "birthday cake", "hot beverage", "automobile", "bicycle", "airplane", "house", "crown", "key", "bell",
    "umbrella", "snowman", "fire", "red heart", "wrapped gift", "soccer ball", "trumpet", "camera", "light bulb",
)  # fmt: skip
LICENCE = """# Licence of these pictures

Derived from [Noto Color Emoji](https://github.com/googlefonts/noto-emoji), rendered from the Debian package
`fonts-noto-color-emoji`. Its copyright file gives the fonts under the SIL Open Font License 1.1 and tools and most
image resources under the Apache License 2.0; Copyright Google LLC. Sizes, backgrounds and colours were changed
(the `styled` and training pictures are a two-tone rendering). Captions come from the short names of Unicode CLDR
(Unicode License v3). The pictures may be used and passed on under the same terms.
"""


def png(picture: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def write_trained(out: Path, subjects: dict[str, np.ndarray]) -> None:
    for number, (name, canvas) in enumerate(TRAINED.items(), start=1):
        stem = f"{number:02d}_{name.replace(' ', '_')}"
        picture = two_tone(draw(subjects[name], PLAIN, *canvas))
        files.write_bytes(out / f"{stem}.png", png(picture))
        files.write_bytes(out / f"{stem}.txt", caption(name, PLAIN, PREFIXES[number % 2]).encode())


def write_unseen(out: Path, subjects: dict[str, np.ndarray]) -> None:
    for name in UNSEEN:
        stem, original = name.replace(" ", "_"), draw(subjects[name], PLAIN)
        files.write_bytes(out / "original" / f"{stem}.png", png(original))
        files.write_bytes(out / "styled" / f"{stem}.png", png(two_tone(original)))
        files.write_bytes(out / f"{stem}.txt", caption(name, PLAIN).encode())


def by_name(chosen: list[Subject], glyphs: np.ndarray) -> dict[str, np.ndarray]:
    wanted = {*TRAINED, *UNSEEN}
    found = {s.name: np.ascontiguousarray(glyphs[i]) for i, s in enumerate(chosen) if s.name in wanted}
    if wanted - found.keys():
        raise ValueError(f"no such subjects: {sorted(wanted - found.keys())}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=DEMO_DIR)
    arguments = parser.parse_args()
    subjects = by_name(*data.load(arguments.data))
    write_trained(arguments.out / "pictures", subjects)
    write_unseen(arguments.out / "unseen", subjects)
    files.write_bytes(arguments.out / "LICENSE.md", LICENCE.encode())
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(json.dumps({"trained": len(TRAINED), "unseen": len(UNSEEN), "bytes": size, "ink": NAVY, "paper": CREAM}))


if __name__ == "__main__":
    main()
