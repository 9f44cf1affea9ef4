"""Fills the caches: each picture through the VAE once, each caption through the text encoders once.

An encoder is loaded only if something is missing, and freed when the function returns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..flux.files import ModelFiles, fingerprint
from ..flux.flavours import Flavour
from ..flux.text import load_text_encoders
from ..flux.vae import load_vae
from .cache import content_digest, entry_path, write_entry
from .images import crop_to_bucket, load_rgb, to_tensor
from .index import Sample

CAPTIONS_AT_ONCE = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Caches:
    """Where the entries of a run lie: one latent a sample, trained or not, and one text entry a caption."""

    latents: dict[Sample, Path]
    captions: dict[str, Path]


def encode_pictures(
    samples: Sequence[Sample], vae_path: Path, cache_dir: Path, device: torch.device, progress: Progress
) -> dict[Sample, Path]:
    """The latent entry of each sample, float32 (16, H, W) under `latent`, encoding those that are missing."""
    encoder = fingerprint(vae_path)
    paths = {
        sample: entry_path(cache_dir, "latents", content_digest(sample.path), str(sample.bucket), "centre", encoder)
        for sample in samples
    }
    missing = [(sample, path) for sample, path in paths.items() if not path.exists()]
    vae = load_vae(vae_path, device) if missing else None
    progress(len(paths) - len(missing), len(paths))
    for done, (sample, path) in enumerate(missing, len(paths) - len(missing) + 1):
        pixels = to_tensor(crop_to_bucket(load_rgb(sample.path), sample.bucket))
        write_entry(path, {"latent": vae.encode(pixels.unsqueeze(0))[0]})
        progress(done, len(paths))
    return paths


def encode_captions(
    captions: list[str],
    files: ModelFiles,
    flavour: Flavour,
    cache_dir: Path,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> dict[str, Path]:
    """The text entry of each distinct caption, (L, D) under `text` and (P,) under `pooled`, encoding those that are missing."""
    encoders = (fingerprint(files.clip_l), fingerprint(files.t5), str(flavour.t5_max_length), str(dtype))
    paths = {caption: entry_path(cache_dir, "captions", caption, *encoders) for caption in captions}
    missing = [caption for caption, path in paths.items() if not path.exists()]
    model = load_text_encoders(files, flavour, dtype, device) if missing else None
    progress(len(paths) - len(missing), len(paths))
    for start in range(0, len(missing), CAPTIONS_AT_ONCE):
        chunk = missing[start : start + CAPTIONS_AT_ONCE]
        text_BLD, pooled_BP = model.encode(chunk)
        for caption, text, pooled in zip(chunk, text_BLD, pooled_BP, strict=True):
            write_entry(paths[caption], {"text": text.clone(), "pooled": pooled.clone()})
        progress(len(paths) - len(missing) + start + len(chunk), len(paths))
    return paths
