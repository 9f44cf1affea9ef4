"""Fills the caches: each picture through the VAE once, each caption through the text encoders once, each mask averaged once.

An encoder is loaded only if something is missing, and freed when the function returns. Pictures are decoded by a few threads,
a little ahead of the VAE, so that it never waits for the disk. What is encoded when a run is stopped, or fails, is kept.
"""

import logging
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import JobError
from ..flux.files import ModelFiles, fingerprint
from ..flux.flavours import Flavour
from ..flux.text import EncoderFormat, clip_encoder, t5_encoder
from ..flux.vae import DOWNSCALE, load_vae
from .aside import threads_aside
from .buckets import Bucket, Fit
from .cache import Shards, content_digest, entry_name
from .images import apply_fit, load_rgb, to_cells, to_tensor
from .sample import Sample
from .upright import load_mask, mask_orientation

CAPTIONS_AT_ONCE = 8
DECODERS = min(8, os.cpu_count() or 1)  # threads

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


class Picture(NamedTuple):
    """What a latent is made from: a file whose bytes have this digest, where it goes, and what shows through it."""

    path: Path
    digest: str
    bucket: Bucket
    fit: Fit
    background: str  # empty where nothing is transparent


class MaskSource(NamedTuple):
    """Which bytes a mask has, and what is taken of them: 'alpha', or the luminance turned by this EXIF orientation."""

    digest: str
    taken: str


def picture_of(sample: Sample, view: int) -> Picture:
    """What the latent of this view is made from."""
    facts = sample.facts
    return Picture(sample.path, facts.digest, sample.bucket, sample.views[view], sample.background if facts.has_alpha else "")


def reference_of(sample: Sample, view: int) -> Picture:
    """What the latent of the reference is made from, where this view of its picture is shown."""
    path, facts, bucket, views = sample.reference
    return Picture(path, facts.digest, bucket, views[view], sample.background if facts.has_alpha else "")


def pictures_of(samples: Iterable[Sample]) -> Iterator[Picture]:
    """All that is to become a latent."""
    for sample in samples:
        for view in range(len(sample.views)):
            yield picture_of(sample, view)
            if sample.reference is not None:
                yield reference_of(sample, view)


@dataclass(frozen=True)
class Caches:
    """What was encoded for this run, found by what it was made from."""

    latents: Shards
    captions: Shards
    masks: Shards
    vae: str  # what identifies the encoder of the latents
    text_encoders: tuple[str, ...]  # and those of the captions
    mask_sources: Mapping[tuple[Path, Path], MaskSource]  # by the mask's and the picture's file

    def latent(self, sample: Sample, view: int = 0) -> Tensor:
        """(16, H, W) float32."""
        return self.latent_of(picture_of(sample, view))

    def reference(self, sample: Sample, view: int = 0) -> Tensor:
        """(16, H, W) float32 of what the picture starts from; the sample must have a reference."""
        assert sample.reference is not None, "only what has a reference is asked for it"
        return self.latent_of(reference_of(sample, view))

    def latent_of(self, picture: Picture) -> Tensor:
        """(16, H, W) float32 of any picture that was encoded."""
        return self.latents.read(self.latent_name(picture))["latent"]

    def text(self, caption: str) -> dict[str, Tensor]:
        """(L, D) under `text`, (L,) bool under `text_mask` (false is padding), (P,) under `pooled`."""
        return self.captions.read(self.caption_name(caption))

    def mask(self, sample: Sample, view: int = 0) -> Tensor:
        """(H, W) float32 in [0, 1]; the sample must have a mask."""
        return self.masks.read(self.mask_name(sample, view))["mask"]

    def latent_name(self, picture: Picture) -> str:
        return entry_name("latents", *map(str, picture[1:]), self.vae)

    def caption_name(self, caption: str) -> str:
        return entry_name("captions", caption, *self.text_encoders)

    def mask_name(self, sample: Sample, view: int) -> str:
        assert sample.mask is not None, "only what has a mask is asked for it"
        source = self.mask_sources[sample.mask.path, sample.path]
        return entry_name("masks", *map(str, source), str(sample.bucket), str(sample.views[view]), str(DOWNSCALE))

    def needed(
        self, samples: Sequence[Sample], captions: Iterable[str], others: Iterable[Picture] = ()
    ) -> tuple[tuple[Shards, set[str]], ...]:
        """For each kind, the names of the entries that these come to; `others` are pictures besides."""
        masked = [(sample, view) for sample in samples if sample.mask is not None for view in range(len(sample.views))]
        return (
            (self.latents, {self.latent_name(picture) for picture in (*pictures_of(samples), *others)}),
            (self.captions, {self.caption_name(caption) for caption in captions}),
            (self.masks, {self.mask_name(sample, view) for sample, view in masked}),
        )

    def check(
        self, samples: Sequence[Sample], captions: Iterable[str], progress: Progress, others: Iterable[Picture] = ()
    ) -> None:
        """Read once what is there of these, and drop what is damaged, so that it is encoded again."""
        needed = self.needed(samples, captions, others)
        there = [(shards, [name for name in names if name in shards]) for shards, names in needed]
        before, total = 0, sum(len(names) for _, names in there)
        for shards, names in there:
            shards.check(names, lambda done, before=before: progress(before + done, total))
            before += len(names)

    def shards_of(self, samples: Sequence[Sample], captions: Iterable[str], others: Iterable[Picture] = ()) -> set[Path]:
        """The files in which these are, as far as they are encoded."""
        return {path for shards, names in self.needed(samples, captions, others) for path in shards.used(names)}


def open_caches(
    cache_dir: Path,
    samples: Iterable[Sample],
    files: ModelFiles,
    flavour: Flavour,
    encoding: EncoderFormat,
    *,
    tiled: bool = False,
) -> Caches:
    """The caches below this folder as they are: what these encoders made. Reads the headers of all shards, and the masks."""
    return Caches(
        *(Shards(cache_dir / kind) for kind in ("latents", "captions", "masks")),
        vae=fingerprint(files.vae) + " tiled" * tiled,
        text_encoders=(fingerprint(files.clip_l), fingerprint(files.t5), str(flavour.t5_max_length), str(encoding)),
        mask_sources={
            (mask.path, sample.path): MaskSource(
                content_digest(mask.path),
                "alpha" if mask.path == sample.path else str(mask_orientation(mask.path, sample.path)),
            )
            for sample in samples
            if (mask := sample.mask) is not None
        },
    )


def encode_pictures(
    caches: Caches,
    wanted: Iterable[Picture],
    vae_path: Path,
    device: torch.device,
    progress: Progress,
    *,
    tiled: bool = False,
    sliced: bool = False,
    batch_size: int = 1,
) -> None:
    """The latent of each picture, float32 (16, H, W) under `latent`, where it is missing.

    So many pictures of one bucket go through the VAE together; sliced, it takes them one by one all the same. JobError when a
    file is not what it was when it was looked at.
    """
    pictures = {caches.latent_name(picture): picture for picture in wanted}
    missing = {name: picture for name, picture in pictures.items() if name not in caches.latents}
    done = len(pictures) - len(missing)
    if not missing:
        progress(done, done)
        return
    vae = load_vae(vae_path, device, tiled=tiled)
    if sliced:
        vae.model.enable_slicing()
    progress(done, len(pictures))
    chunks = _of_one_bucket(missing, batch_size)
    in_order = [missing[name] for names in chunks for name in names]
    with caches.latents.writer() as writer, closing(_ahead(_pixels, in_order, DECODERS + batch_size)) as decoded:
        for names in chunks:
            latent_BCHW = vae.encode(torch.stack(list(islice(decoded, len(names)))))
            for name, latent in zip(names, latent_BCHW, strict=True):
                writer.add(name, {"latent": latent})
            done += len(names)
            progress(done, len(pictures))


def encode_masks(caches: Caches, samples: Sequence[Sample], progress: Progress) -> None:
    """The mask of each view of each sample that has one, float32 (H, W) in [0, 1] under `mask`, one for each cell of a latent.

    JobError where a mask is black all over and normalising its area would divide by zero.
    """
    masked = [(sample, view) for sample in samples if sample.mask is not None for view in range(len(sample.views))]
    with caches.masks.writer() as writer:
        for done, (sample, view) in enumerate(masked, 1):
            mask, name = sample.mask, caches.mask_name(sample, view)
            if name in caches.masks:
                cells = caches.masks.read(name)["mask"] if mask.background_weight == 0 else None
            else:
                _check_unchanged(mask.path, caches.mask_sources[mask.path, sample.path].digest)
                cells = to_cells(apply_fit(load_mask(mask.path, sample.path), sample.views[view], sample.bucket), DOWNSCALE)
                writer.add(name, {"mask": cells})
            if mask.background_weight == 0 and not cells.any():
                _report_black(sample)
            progress(done, len(masked))


def encode_captions(
    caches: Caches,
    captions: Iterable[str],
    files: ModelFiles,
    flavour: Flavour,
    encoding: EncoderFormat,
    device: torch.device,
    progress: Progress,
    *,
    one_at_a_time: bool = False,
) -> None:
    """The text of each distinct caption, where it is missing; with one_at_a_time CLIP goes before T5 comes.

    (L, D) under `text`, its words as (L,) bool under `text_mask` (false is padding), and (P,) under `pooled`.
    """
    distinct = list(dict.fromkeys(captions))
    missing = [caption for caption in distinct if caches.caption_name(caption) not in caches.captions]
    done = len(distinct) - len(missing)
    progress(done, len(distinct))
    if not missing:
        return
    still = lambda name: progress(done, len(distinct))  # noqa: E731  while a model is loaded; it may be told to stop
    chunks = [missing[start : start + CAPTIONS_AT_ONCE] for start in range(0, len(missing), CAPTIONS_AT_ONCE)]
    clip = clip_encoder(files, flavour, encoding, device, still)
    pooled = iter([clip.encode(chunk) for chunk in chunks]) if one_at_a_time else map(clip.encode, chunks)
    del clip  # where it has done its work, this was the last that held it
    t5 = t5_encoder(files, flavour, encoding, device, still)
    progress(done, len(distinct))  # the pace is that of encoding, not of loading
    with caches.captions.writer() as writer:
        for chunk, pooled_BP in zip(chunks, pooled, strict=True):
            for caption, pooled_P, text, text_mask in zip(chunk, pooled_BP, *t5.encode(chunk), strict=True):
                writer.add(caches.caption_name(caption), {"text": text, "pooled": pooled_P, "text_mask": text_mask})
            done += len(chunk)
            progress(done, len(distinct))


def _of_one_bucket(pictures: Mapping[str, Picture], batch_size: int) -> list[list[str]]:
    """The names of these in groups that fit into one batch; in their order where it holds a single one."""
    if batch_size == 1:
        return [[name] for name in pictures]
    by_bucket: defaultdict[Bucket, list[str]] = defaultdict(list)
    for name, picture in pictures.items():
        by_bucket[picture.bucket].append(name)
    return [names[start : start + batch_size] for names in by_bucket.values() for start in range(0, len(names), batch_size)]


def _ahead(work: Callable[[Picture], Tensor], pictures: Iterable[Picture], depth: int) -> Iterator[Tensor]:
    """What `work` makes of each, in order, while threads make at most so many of those that come next."""
    coming, pool = iter(pictures), threads_aside(DECODERS, "pictures")
    try:
        making = deque(pool.submit(work, picture) for picture in islice(coming, depth))
        while making:
            made = making.popleft().result()
            making.extend(pool.submit(work, picture) for picture in islice(coming, 1))
            yield made
    finally:
        pool.shutdown(cancel_futures=True)


def _pixels(picture: Picture) -> Tensor:
    """(3, H, W) float32 in [-1, 1]."""
    _check_unchanged(picture.path, picture.digest)
    return to_tensor(apply_fit(load_rgb(picture.path, picture.background or "white"), picture.fit, picture.bucket))


def _check_unchanged(path: Path, digest: str) -> None:
    """JobError when the file is gone or not the one that was looked at, for its latent would be stored under a wrong name."""
    try:
        found = content_digest(path)
    except OSError as error:
        raise JobError(f"{path} cannot be read any more ({error.strerror}); put it back, or start again without it") from None
    if found != digest:
        raise JobError(f"{path} has changed since the datasets were looked at; start again")


def _report_black(sample: Sample) -> None:
    """A mask that leaves nothing of its picture: JobError where the loss would be divided by its mean, else a warning."""
    what = "transparent" if sample.mask.path == sample.path else "black"
    black = f"mask {sample.mask.path} is {what} wherever its picture is trained on ({sample.bucket} after cropping)"
    if sample.mask.normalise_area:
        raise JobError(f"{black}, so mask_normalise_area has nothing to divide by; paint it, or take the picture out")
    log.warning("%s; nothing is learned from this picture", black)
