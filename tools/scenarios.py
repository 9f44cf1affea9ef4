"""The pictures of docs/scenarios.md, from what tests/browser/test_templates.py saw: python -m tools.scenarios SHOTS

One strip a template: the node while it trains, stopped and finished, and the pictures at the end of the graph.
"""

import argparse
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parents[1] / "docs" / "scenarios"
NODE = (530, 100, 940, 930)  # where the tests put a node on a page of 1500x1000 pixels
MOMENTS = ("1 training", "2 stopped", "3 finished", "4 pictures")
WIDTH = 300  # pixels of each


def strip(shots: Path, name: str) -> Image.Image:
    """The moments of one template, side by side."""
    parts = []
    for moment in MOMENTS:
        with Image.open(shots / f"{name}, {moment}.png") as page:
            part = page.convert("RGB").crop(NODE)
        parts.append(part.resize((WIDTH, round(WIDTH * part.height / part.width)), Image.Resampling.LANCZOS))
    whole = Image.new("RGB", (WIDTH * len(parts), parts[0].height))
    for number, part in enumerate(parts):
        whole.paste(part, (number * WIDTH, 0))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.scenarios", description=__doc__)
    parser.add_argument("shots", type=Path, help="the folder that FLUX_LORA_SHOTS named")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for last in sorted(arguments.shots.glob("*, 4 pictures.png")):
        name = last.stem.removesuffix(", 4 pictures")
        strip(arguments.shots, name).save(FOLDER / f"{name}.jpg", quality=80, optimize=True)


if __name__ == "__main__":
    main()
