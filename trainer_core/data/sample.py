"""What a dataset comes to: samples to train on, and the files that were left out with the reason.

These records are all that later stages know of a dataset. They hold facts, no pixels, and there may be a hundred thousand of
them. Needs no torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .buckets import Bucket, Fit
from .masks import Mask


class Facts(NamedTuple):
    """What one look at a picture file told. Sizes in pixels, upright.

    `digest` is of the file's bytes; `look` a 64-bit perceptual hash, of which similar pictures share most bits;
    `orientation` the EXIF value that turns the stored picture upright (1: as it is); `has_alpha`: parts may be transparent.
    """

    width: int
    height: int
    digest: str
    look: int = 0
    orientation: int = 1
    has_alpha: bool = False


class Reference(NamedTuple):
    """The picture that this one starts from, with the bucket that it is brought to."""

    path: Path
    facts: Facts
    bucket: Bucket
    views: tuple[Fit, ...]  # one for each view of the sample


class Sample(NamedTuple):
    """A picture in one of its dataset's resolutions.

    `captions` are the forms of its caption and `views` the ways in which it is brought to its bucket; each visit takes one of
    either, and the first of either is what evaluation and prompts see. `passes` is how often an epoch shows it. Where
    `is_regularisation`, the adapter is to change nothing. `file` is the picture's path, kept as text, which is smaller.
    """

    dataset_id: str
    file: str
    captions: tuple[str, ...]
    facts: Facts
    bucket: Bucket
    views: tuple[Fit, ...]
    passes: int = 1
    mask: Mask | None = None
    reference: Reference | None = None
    background: str = "white"
    is_regularisation: bool = False

    @property
    def path(self) -> Path:
        return Path(self.file)

    @property
    def caption(self) -> str:
        return self.captions[0]

    @property
    def shape(self) -> tuple[Bucket, ...]:
        """Its own bucket, and the reference's: samples that share a batch have the same."""
        return (self.bucket,) if self.reference is None else (self.bucket, self.reference.bucket)


class Reject(Exception):
    """Raised where a file cannot be trained on; its text is the reason, and only this file is left out."""


class Rejected(NamedTuple):
    """A file that is not trained on, and why, in words for the user."""

    dataset_id: str
    path: Path
    reason: str


@dataclass(frozen=True)
class Index:
    """Samples in the order of datasets, paths and resolutions."""

    samples: tuple[Sample, ...]
    rejected: tuple[Rejected, ...] = ()
