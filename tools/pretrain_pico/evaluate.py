"""Measure the exported weights: python -m tools.pretrain_pico.evaluate --data DIR --sheet FILE.png [--prompts N].

Reads the very files that are shipped, converted back to diffusers and transformers, and prints JSON, of a hundred prompts
unless told:
- retrieval: of 100 prompts, how many pictures lie nearest (16 x 16 pixels, over all subjects of pico) to their own
  original, and among the 100 originals alone;
- obedience: 100 prompts that mix a subject with a colour, a size or a place; colour is read off the corners, size and
  place off the pixels that differ from the background, the subject by retrieval among 100 subjects in the same scene;
- swapped: a prompt exchanged for another, same noise, gives the other picture;
- canvases: the same retrieval among the 100 originals on canvases of other sizes and aspects;
- vae: error of encoding and decoding the originals.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from . import data, export, files, model, text, vae
from .scene import BACKGROUNDS, PLACES, PLAIN, Scene, caption, draw

NUM_PROMPTS = 100
CANVASES = ((48, 48), (96, 96), (128, 128), (48, 80), (96, 64))


class Pico:
    """The shipped files put together again."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32):
        self.device = files.device()
        self.settings = json.loads((folder / "recommended.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.network, self.encoders = model.new_transformer(), text.TextEncoders()
        original = load_file(folder / "transformer.safetensors")
        self.network.load_state_dict(export.from_original(original, self.network))
        self.encoders.clip = read_encoder(folder / "clip_l.safetensors", CLIPTextModel, CLIPTextConfig)
        self.encoders.t5 = read_encoder(folder / "t5.safetensors", T5EncoderModel, T5Config)
        self.autoencoder = vae.new_vae()
        stored = load_file(folder / "vae.safetensors")
        self.autoencoder.load_state_dict(export.from_taesd_names(stored))
        for part in (self.network, self.encoders, self.autoencoder):
            part.to(self.device, dtype).eval().requires_grad_(False)

    def draw(self, captions: list[str], seed: int, canvas: tuple[int, int] = (64, 64), **changes: float) -> np.ndarray:
        """uint8 [N, H, W, 3]; noise is a function of seed and the place in the list, changes replace settings."""
        generator = torch.Generator().manual_seed(seed)
        shape = (len(captions), vae.CHANNELS, canvas[1] // vae.PATCH, canvas[0] // vae.PATCH)
        noise = torch.randn(shape, generator=generator).to(self.device)
        ids = text.token_ids(self.tokenizer, captions).to(self.device)
        latent = model.sample(self.network, self.encoders, ids, noise, self.settings | changes)
        return self.pixels(latent)

    def pixels(self, latent_BCHW: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            rgb = vae.decode(self.autoencoder, latent_BCHW).clamp(-1.0, 1.0)
        return ((rgb + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def read_encoder(path: Path, model_class: type, config_class: type) -> torch.nn.Module:
    """A text encoder from its file and the configuration in its metadata."""
    with safe_open(path, "pt") as opened:
        config = config_class.from_dict(json.loads(opened.metadata()["config"]))
    encoder, tensors = model_class(config), load_file(path)
    if not any(name.startswith("text_model.") for name in encoder.state_dict()):
        tensors = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    missing, unexpected = encoder.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"encoder.embed_tokens.weight"}, (missing, unexpected)
    return encoder


def small(pictures: np.ndarray) -> torch.Tensor:
    """[N, 3*16*16] in 0..1: pictures made small, so that distance means composition and colour, not edges."""
    rgb = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255.0
    return functional.interpolate(rgb, size=(16, 16), mode="area").flatten(1)


def scene_pictures(glyphs: np.ndarray, chosen: list[int], scene: Scene) -> np.ndarray:
    """The originals: uint8 [N, 64, 64, 3]."""
    return np.stack([np.array(draw(np.ascontiguousarray(glyphs[i]), scene)) for i in chosen])


def read_scene(picture: np.ndarray) -> Scene:
    """What a picture shows, by measure alone: background colour, size and place of what stands out from it."""
    pixels = picture.astype(np.float32)
    ends = np.r_[0:6, -6:0]
    corners = pixels[np.ix_(ends, ends)].reshape(-1, 3)
    ground = np.median(corners, axis=0)
    background = min(BACKGROUNDS, key=lambda name: float(np.abs(ground - BACKGROUNDS[name]).sum()))
    stands_out = np.abs(pixels - ground).max(axis=-1) > 40
    if stands_out.sum() < 12:
        return Scene(size="none", background=background)
    rows, columns = np.nonzero(stands_out)
    top, bottom = np.percentile(rows, [2, 98])
    left, right = np.percentile(columns, [2, 98])
    extent = max(bottom - top, right - left) / len(pixels)
    size = "small" if extent < 0.56 else "medium" if extent < 0.8 else "large"
    if size != "small":
        return Scene(size, background)
    row, column = ((top + bottom) / 2 / 63 - 0.25) / 0.5, ((left + right) / 2 / 63 - 0.25) / 0.5
    place = min(PLACES, key=lambda name: (PLACES[name][0] - row) ** 2 + (PLACES[name][1] - column) ** 2)
    return Scene(size, background, place)


def composed_scenes(seed: int, count: int = NUM_PROMPTS) -> list[Scene]:
    """So many scenes: a third names a colour, a third a size or a place, a third both."""
    chance = random.Random(seed)
    colours = [name for name in BACKGROUNDS if name != "white"]
    places = [name for name in PLACES if name != "middle"]
    scenes = []
    for i in range(count):
        colour = chance.choice(colours) if i % 3 != 1 else "white"
        layout = chance.choice([("small", "middle"), ("large", "middle"), *[("small", place) for place in places]])
        scenes.append(Scene(layout[0], colour, layout[1]) if i % 3 != 0 else Scene(background=colour))
    return scenes


def retrieval(pico: Pico, names: list[str], glyphs: np.ndarray, chosen: list[int]) -> tuple[dict, np.ndarray]:
    """Top-1 of plain prompts, among the hundred originals and among all; and the pictures."""
    pictures = pico.draw([names[i] for i in chosen], seed=1)
    originals = small(scene_pictures(glyphs, list(range(len(names))), PLAIN))
    distance = torch.cdist(small(pictures), originals)
    target = torch.tensor(chosen)
    of_all = (distance.argmin(dim=1) == target).sum().item()
    of_hundred = (distance[:, target].argmin(dim=1) == torch.arange(len(chosen))).sum().item()
    swapped = pico.draw([names[i] for i in chosen[::-1]], seed=1)
    other = torch.cdist(small(swapped), originals[target]).argmin(dim=1)
    followed = (other == torch.arange(len(chosen)).flip(0)).sum().item()
    return {"among_100": of_hundred, "among_all": of_all, "swapped_prompt_followed": followed}, pictures


def other_canvases(pico: Pico, names: list[str], glyphs: np.ndarray, chosen: list[int]) -> dict[str, int]:
    """Of the hundred plain prompts, how many pictures lie nearest to their own original drawn on that canvas."""
    right = {}
    for canvas in CANVASES:
        pictures = np.concatenate(
            [pico.draw([names[i] for i in chosen[k : k + 25]], seed=1, canvas=canvas) for k in range(0, len(chosen), 25)]
        )
        originals = np.stack([np.array(draw(np.ascontiguousarray(glyphs[i]), PLAIN, *canvas)) for i in chosen])
        nearest = torch.cdist(small(pictures), small(originals)).argmin(dim=1)
        right[f"{canvas[0]}x{canvas[1]}"] = (nearest == torch.arange(len(chosen))).sum().item()
    return right


def obedience(pico: Pico, names: list[str], glyphs: np.ndarray, chosen: list[int]) -> tuple[dict, np.ndarray]:
    """How many composed prompts are obeyed in what they say of the scene, and in the subject too."""
    scenes = composed_scenes(seed=2, count=len(chosen))
    captions = [caption(names[i], scene) for i, scene in zip(chosen, scenes, strict=True)]
    pictures = pico.draw(captions, seed=3)
    drawn = np.concatenate([scene_pictures(glyphs, [i], s) for i, s in zip(chosen, scenes, strict=True)])
    counts = {"scene": 0, "subject": 0, "both": 0, "colour": 0, "size_and_place": 0, "measure_on_originals": 0}
    for k, scene in enumerate(scenes):
        seen = read_scene(pictures[k])
        candidates = small(scene_pictures(glyphs, chosen, scene))
        is_subject = torch.cdist(small(pictures[k : k + 1]), candidates).argmin().item() == k
        is_colour = seen.background == scene.background
        is_layout = (seen.size, seen.place) == (scene.size, scene.place)
        counts["colour"] += is_colour
        counts["size_and_place"] += is_layout
        counts["scene"] += is_colour and is_layout
        counts["subject"] += is_subject
        counts["both"] += is_colour and is_layout and is_subject
        counts["measure_on_originals"] += read_scene(drawn[k]) == scene
    return counts, pictures


def sheet(pictures: np.ndarray, columns: int = 20) -> Image.Image:
    """Pictures in rows."""
    side = pictures.shape[1]
    canvas = Image.new("RGB", (side * columns, side * (-(-len(pictures) // columns))), "white")
    for i, picture in enumerate(pictures):
        canvas.paste(Image.fromarray(picture), (i % columns * side, i // columns * side))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=export.WEIGHTS_DIR)
    parser.add_argument("--sheet", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS)
    arguments = parser.parse_args()
    subjects, glyphs = data.load(arguments.data)
    names = [subject.name for subject in subjects]
    pico = Pico(arguments.weights)
    chosen = random.Random(0).sample(range(len(names)), arguments.prompts)
    found, plain_pictures = retrieval(pico, names, glyphs, chosen)
    obeyed, composed_pictures = obedience(pico, names, glyphs, chosen)
    originals = torch.from_numpy(scene_pictures(glyphs, chosen, PLAIN)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with torch.no_grad():
        latent = vae.encode(pico.autoencoder, originals.to(pico.device))
    again = pico.pixels(latent).astype(np.float32)
    mse = float(((again / 255.0 - originals.permute(0, 2, 3, 1).numpy() / 2.0 - 0.5) ** 2).mean())
    sheet(np.concatenate([plain_pictures, composed_pictures])).save(arguments.sheet)
    report = {"subjects": len(names), "retrieval": found, "obedience": obeyed, "settings": pico.settings}
    report["canvases"] = other_canvases(pico, names, glyphs, chosen)
    report["vae_psnr_db"] = round(-10.0 * float(np.log10(mse)), 2)
    report["latent_std"] = [round(value, 2) for value in latent.std(dim=(0, 2, 3)).tolist()]
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
