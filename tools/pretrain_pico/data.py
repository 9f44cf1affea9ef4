"""Render the glyphs once: python -m tools.pretrain_pico.data --out DIR  (about a minute).

Writes DIR/glyphs.npy (uint8 RGBA, one square per subject), DIR/subjects.json (characters and names, same order) and
DIR/tokenizer.json, learnt from the captions.
The later commands draw scenes out of these; nothing else of the font is needed after this.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from . import text
from .catalogue import Subject, glyph_array, subjects
from .files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    chosen = subjects()
    np.save(arguments.out / "glyphs.npy", glyph_array(chosen))
    write_json(arguments.out / "subjects.json", [[subject.character, subject.name] for subject in chosen])
    text.train_tokenizer(chosen).save(str(arguments.out / text.TOKENIZER_FILE))
    print(json.dumps({"subjects": len(chosen)}))


def load(folder: Path) -> tuple[list[Subject], np.ndarray]:
    """The subjects and their glyphs (uint8 [N, side, side, 4]) that this command wrote."""
    chosen = [Subject(character, name) for character, name in json.loads((folder / "subjects.json").read_text())]
    return chosen, np.load(folder / "glyphs.npy", mmap_mode="r")


if __name__ == "__main__":
    main()
