"""Fills the caches: each picture through the VAE once, each caption through the text encoders once, each mask averaged once.

An encoder is loaded only if something is missing, and freed when the function returns.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import JobError
from ..flux.files import ModelFiles, fingerprint
from ..flux.flavours import Flavour
from ..flux.text import EncoderFormat, clip_encoder, t5_encoder
from ..flux.vae import DOWNSCALE, load_vae
from .buckets import Bucket, Fit
from .cache import content_digest, entry_path, read_entry, write_entry
from .images import apply_fit, load_rgb, to_cells, to_tensor
from .sample import Sample
from .upright import load_mask, mask_orientation

CAPTIONS_AT_ONCE = 8

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


Geometry = tuple[str, Bucket, Fit, str]  # the file's digest, where it goes, and what shows through it


def geometry_of(sample: Sample, view: int) -> Geometry:
    """What the latent of this view is made from."""
    return sample.facts.digest, sample.bucket, sample.views[view], sample.background


def reference_geometry_of(sample: Sample, view: int) -> Geometry:
    """What the latent of the reference is made from, where this view of its picture is shown."""
    reference = sample.reference
    return reference.facts.digest, reference.bucket, reference.views[view], sample.background


@dataclass(frozen=True)
class Caches:
    """What was encoded for this run, read from the disk by what it was made from."""

    latents: dict[Geometry, Path]
    captions: dict[str, Path]
    masks: dict[tuple[Path, Geometry], Path]

    def latent(self, sample: Sample, view: int = 0) -> Tensor:
        """(16, H, W) float32."""
        return read_entry(self.latents[geometry_of(sample, view)])["latent"]

    def reference(self, sample: Sample, view: int = 0) -> Tensor:
        """(16, H, W) float32 of what the picture starts from; the sample must have a reference."""
        assert sample.reference is not None, "only what has a reference is asked for it"
        return read_entry(self.latents[reference_geometry_of(sample, view)])["latent"]

    def text(self, caption: str) -> dict[str, Tensor]:
        """(L, D) under `text`, (L,) bool under `text_mask` (false is padding), (P,) under `pooled`."""
        return read_entry(self.captions[caption])

    def mask(self, sample: Sample, view: int = 0) -> Tensor:
        """(H, W) float32 in [0, 1]; the sample must have a mask."""
        assert sample.mask is not None, "only what has a mask is asked for it"
        return read_entry(self.masks[sample.mask.path, geometry_of(sample, view)])["mask"]


def encode_pictures(
    samples: Sequence[Sample],
    vae_path: Path,
    cache_dir: Path,
    device: torch.device,
    progress: Progress,
    *,
    tiled: bool = False,
) -> dict[Geometry, Path]:
    """The latent entry of each view of each sample and of its reference, float32 (16, H, W) under `latent`, encoding those that
    are missing."""
    encoder = fingerprint(vae_path) + " tiled" * tiled
    views = {geometry_of(sample, view): sample.path for sample in samples for view in range(len(sample.views))}
    referring = [sample for sample in samples if sample.reference is not None]
    views |= {reference_geometry_of(one, view): one.reference.path for one in referring for view in range(len(one.views))}
    paths = {geometry: entry_path(cache_dir, "latents", *map(str, geometry), encoder) for geometry in views}
    missing = [(geometry, path) for geometry, path in paths.items() if not path.exists()]
    vae = load_vae(vae_path, device, tiled=tiled) if missing else None
    progress(len(paths) - len(missing), len(paths))
    for done, (geometry, path) in enumerate(missing, len(paths) - len(missing) + 1):
        _, bucket, fit, background = geometry
        pixels = to_tensor(apply_fit(load_rgb(views[geometry], background), fit, bucket))
        write_entry(path, {"latent": vae.encode(pixels.unsqueeze(0))[0]})
        progress(done, len(paths))
    return paths


def encode_masks(samples: Sequence[Sample], cache_dir: Path, progress: Progress) -> dict[tuple[Path, Geometry], Path]:
    """The mask of each view of each sample that has one, float32 (H, W) in [0, 1] under `mask`, one for each cell of a latent.

    JobError where a mask is black all over and normalising its area would divide by zero.
    """
    paths: dict[tuple[Path, Geometry], Path] = {}
    masked = [(sample, view) for sample in samples if sample.mask is not None for view in range(len(sample.views))]
    for done, (sample, view) in enumerate(masked, 1):
        mask, fit = sample.mask, sample.views[view]
        turn = mask_orientation(mask.path, sample.path)
        path = entry_path(
            cache_dir, "masks", content_digest(mask.path), str(turn), str(sample.bucket), str(fit), str(DOWNSCALE)
        )
        if not path.exists():
            upright = load_mask(mask.path, sample.path)
            write_entry(path, {"mask": to_cells(apply_fit(upright, fit, sample.bucket), DOWNSCALE)})
        if mask.background_weight == 0 and not read_entry(path)["mask"].any():
            _report_black(sample)
        paths[mask.path, geometry_of(sample, view)] = path
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
