"""Fills the caches: each picture through the VAE once, each caption through the text encoders once, each mask averaged once.

An encoder is loaded only if something is missing, and freed when the function returns.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import JobError
from ..flux.files import ModelFiles, fingerprint
from ..flux.flavours import Flavour
from ..flux.text import EncoderFormat, clip_encoder, t5_encoder
from ..flux.vae import DOWNSCALE, load_vae
from .cache import content_digest, entry_path, read_entry, write_entry
from .images import crop_to_bucket, load_rgb, to_cells, to_tensor
from .index import Sample
from .upright import load_mask, mask_orientation

CAPTIONS_AT_ONCE = 8

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Caches:
    """Where the entries of a run lie: one latent a sample, trained or not, one text entry a caption, and the masks."""

    latents: dict[Sample, Path]
    captions: dict[str, Path]
    masks: dict[Sample, Path]


def encode_pictures(
    samples: Sequence[Sample],
    vae_path: Path,
    cache_dir: Path,
    device: torch.device,
    progress: Progress,
    *,
    tiled: bool = False,
) -> dict[Sample, Path]:
    """The latent entry of each sample, float32 (16, H, W) under `latent`, encoding those that are missing."""
    encoder = fingerprint(vae_path) + " tiled" * tiled
    paths = {
        sample: entry_path(cache_dir, "latents", content_digest(sample.path), str(sample.bucket), "centre", encoder)
        for sample in samples
    }
    missing = [(sample, path) for sample, path in paths.items() if not path.exists()]
    vae = load_vae(vae_path, device, tiled=tiled) if missing else None
    progress(len(paths) - len(missing), len(paths))
    for done, (sample, path) in enumerate(missing, len(paths) - len(missing) + 1):
        pixels = to_tensor(crop_to_bucket(load_rgb(sample.path), sample.bucket))
        write_entry(path, {"latent": vae.encode(pixels.unsqueeze(0))[0]})
        progress(done, len(paths))
    return paths


def encode_masks(samples: Sequence[Sample], cache_dir: Path, progress: Progress) -> dict[Sample, Path]:
    """The mask of each sample that has one, float32 (H, W) in [0, 1] under `mask`, an entry for each cell of its latent.

    JobError where a mask is black all over and normalising its area would divide by zero.
    """
    paths: dict[Sample, Path] = {}
    masked = [sample for sample in samples if sample.mask is not None]
    for done, sample in enumerate(masked, 1):
        mask, size = sample.mask, (sample.width, sample.height)
        turn = mask_orientation(mask.path, sample.path)
        geometry = (str(size), str(turn), str(sample.bucket), "centre", str(DOWNSCALE))
        path = entry_path(cache_dir, "masks", content_digest(mask.path), *geometry)
        if not path.exists():
            upright = load_mask(mask.path, sample.path)
            write_entry(path, {"mask": to_cells(crop_to_bucket(upright, sample.bucket, like=size), DOWNSCALE)})
        if mask.background_weight == 0 and not read_entry(path)["mask"].any():
            _report_black(sample)
        paths[sample] = path
        progress(done, len(masked))
    return paths


def encode_captions(
    captions: list[str],
    files: ModelFiles,
    flavour: Flavour,
    cache_dir: Path,
    encoding: EncoderFormat,
    device: torch.device,
    progress: Progress,
    *,
    one_at_a_time: bool = False,
) -> dict[str, Path]:
    """The text entry of each distinct caption, encoding those that are missing; with one_at_a_time CLIP goes before T5 comes.

    (L, D) under `text`, its words as (L,) bool under `text_mask` (false is padding), and (P,) under `pooled`.
    """
    encoders = (fingerprint(files.clip_l), fingerprint(files.t5), str(flavour.t5_max_length), str(encoding))
    paths = {caption: entry_path(cache_dir, "captions", caption, *encoders) for caption in captions}
    missing = [caption for caption, path in paths.items() if not path.exists()]
    done = len(paths) - len(missing)
    progress(done, len(paths))
    if not missing:
        return paths
    chunks = [missing[start : start + CAPTIONS_AT_ONCE] for start in range(0, len(missing), CAPTIONS_AT_ONCE)]
    clip = clip_encoder(files, flavour, encoding, device)
    pooled = iter([clip.encode(chunk) for chunk in chunks]) if one_at_a_time else map(clip.encode, chunks)
    del clip  # where it has done its work, this was the last that held it
    t5 = t5_encoder(files, flavour, encoding, device)
    for chunk, pooled_BP in zip(chunks, pooled, strict=True):
        for caption, pooled_P, text, text_mask in zip(chunk, pooled_BP, *t5.encode(chunk), strict=True):
            entry = {"text": text, "pooled": pooled_P, "text_mask": text_mask}
            write_entry(paths[caption], {name: tensor.clone() for name, tensor in entry.items()})
        done += len(chunk)
        progress(done, len(paths))
    return paths


def _report_black(sample: Sample) -> None:
    """A mask that leaves nothing of its picture: JobError where the loss would be divided by its mean, else a warning."""
    black = f"mask {sample.mask.path} is black wherever its picture is trained on ({sample.bucket} after cropping)"
    if sample.mask.normalise_area:
        raise JobError(f"{black}, so mask_normalise_area has nothing to divide by; paint it, or take the picture out")
    log.warning("%s; nothing is learned from this picture", black)
