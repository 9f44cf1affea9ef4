"""Encode the training pictures once: python -m tools.pretrain_pico.latents --data DIR --out DIR  (2 minutes).

The code of the VAE's encoder is linear and known before the VAE is trained, so this needs no VAE. For every subject:
the plain picture, every background, every layout and some mixtures at 64 x 64, and one plain and one mixed picture in
each of the other canvas sizes. A file per canvas size, latents_WxH.safetensors, holds the latents (fp16) and, for each,
the index of its subject and of its scene; scenes.json lists the scenes.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch

from . import data, files, vae
from .scene import BACKGROUNDS, PLAIN, Scene, draw, every_layout, random_scene

HOME = (64, 64)
OTHER_CANVASES = ((48, 48), (80, 80), (96, 96), (128, 128), (80, 48), (48, 80), (96, 64), (64, 96))
MIXED_PER_SUBJECT = 12


def scenes_of(canvas: tuple[int, int], chance: random.Random) -> list[Scene]:
    """The scenes of one subject on one canvas; on the home canvas the plain one comes first."""
    if canvas != HOME:
        return [PLAIN, random_scene(chance)]
    colours = [Scene(background=name) for name in BACKGROUNDS if name != PLAIN.background]
    layouts = [scene for scene in every_layout() if scene != PLAIN]
    return [PLAIN, *colours, *layouts, *(random_scene(chance) for _ in range(MIXED_PER_SUBJECT))]


def encode_canvas(glyphs: np.ndarray, code: tuple, canvas: tuple[int, int], chance: random.Random, known: list) -> dict:
    """Draw and encode all pictures of one canvas size; known collects the scenes met so far."""
    latents, subject, scene = [], [], []
    for start in range(0, len(glyphs), 4):
        pixels = []
        for i in range(start, min(start + 4, len(glyphs))):
            for what in scenes_of(canvas, chance):
                if what not in known:
                    known.append(what)
                pixels.append(np.array(draw(np.ascontiguousarray(glyphs[i]), what, *canvas)))
                subject.append(i)
                scene.append(known.index(what))
        rgb = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        latents.append(vae.linear_latents(rgb.float() / 127.5 - 1.0, code).half())
    return {
        "latents": torch.cat(latents),
        "subject": torch.tensor(subject, dtype=torch.int32),
        "scene": torch.tensor(scene, dtype=torch.int32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    glyphs = np.asarray(data.load(arguments.data)[1])
    code = vae.linear_code(glyphs, arguments.seed)
    known: list[Scene] = []
    for canvas in (HOME, *OTHER_CANVASES):
        chance = random.Random(f"latents {arguments.seed} {canvas}")
        encoded = encode_canvas(glyphs, code, canvas, chance, known)
        files.write_tensors(arguments.out / f"latents_{canvas[0]}x{canvas[1]}.safetensors", encoded)
        files.write_json(arguments.out / "scenes.json", [astuple(scene) for scene in known])
        latent = encoded["latents"].float()
        spread = latent.std(dim=(0, 2, 3))
        report = {"canvas": canvas, "pictures": len(latent), "std": [round(value, 2) for value in spread.tolist()]}
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
