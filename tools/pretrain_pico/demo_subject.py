"""Make the demo's subject: python -m tools.pretrain_pico.demo_subject  (a second).

demo/subject: eight cut-out pictures of one blue fox, made from the orange one among the unseen subjects: turned, mirrored and
smaller, with transparency around it. A LoRA has to learn the fox that the base does not know, and to leave foxes alone.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

DEMO_DIR = Path(__file__).resolve().parents[2] / "trainer_core" / "pico" / "demo"
EDGE = 96
PLACES = (
    (0, 92, False),
    (8, 84, True),
    (-8, 88, False),
    (14, 76, False),
    (-14, 80, True),
    (4, 70, True),
    (-4, 94, True),
    (0, 64, False),
)


def cut_out(picture: Image.Image) -> Image.Image:
    """The subject alone: white that is reached from the corners becomes transparent."""
    filled = picture.convert("RGB").resize((4 * EDGE, 4 * EDGE), Image.Resampling.LANCZOS)
    for corner in ((0, 0), (filled.width - 1, 0), (0, filled.height - 1), (filled.width - 1, filled.height - 1)):
        ImageDraw.floodfill(filled, corner, (255, 0, 255), thresh=24)
    outside = (np.asarray(filled) == (255, 0, 255)).all(axis=-1)
    alpha = Image.fromarray(np.where(outside, 0, 255).astype(np.uint8))
    whole = picture.convert("RGB").resize(filled.size, Image.Resampling.LANCZOS)
    whole.putalpha(alpha)
    return whole


def recolour(picture: Image.Image) -> Image.Image:
    """Orange becomes blue: half a turn of the hue."""
    hue, saturation, value = picture.convert("RGB").convert("HSV").split()
    turned = hue.point(lambda level: (level + 136) % 256)
    blue = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    blue.putalpha(picture.getchannel("A"))
    return blue


def main() -> None:
    fox = recolour(cut_out(Image.open(DEMO_DIR / "unseen" / "original" / "fox.png")))
    folder = DEMO_DIR / "subject"
    folder.mkdir(exist_ok=True)
    for number, (degrees, size, mirrored) in enumerate(PLACES, 1):
        turned = fox.rotate(degrees, Image.Resampling.BICUBIC).resize((size, size), Image.Resampling.LANCZOS)
        if mirrored:
            turned = turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        canvas = Image.new("RGBA", (EDGE, EDGE), (255, 255, 255, 0))
        canvas.paste(turned, ((EDGE - size) // 2, (EDGE - size) // 2), turned)
        canvas.quantize(64, method=Image.Quantize.FASTOCTREE).save(folder / f"{number:02d}_blue_fox.png", optimize=True)
        (folder / f"{number:02d}_blue_fox.txt").write_text("a picture of zorb fox", encoding="utf-8")


if __name__ == "__main__":
    main()
