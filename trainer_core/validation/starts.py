"""What the run's pictures start from, where the base takes references: pictures of the job's own choice, or of its datasets.

A picture starts from what people will give the model later: a whole picture, upright, at its own aspect and of about the area
that is to be made, whatever crops the training had. Of the datasets those come first that are never trained on, since an edit
of a picture that was trained on shows memory. No torch.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..data.buckets import Bucket, Fit
from ..data.crops import place
from ..data.facts import Facts, look_at
from ..data.find import find_files
from ..data.references import UNCROPPED
from ..data.sample import Reject, Sample
from ..errors import JobError
from ..file_names import expanded
from ..run_dir import PICTURE_SUFFIXES
from ..specs.dataset import DatasetSpec

WHOLE = DatasetSpec(instance_data_dir=".").model_copy(update=UNCROPPED)


class Start(NamedTuple):
    """A picture to start from, not yet brought to a size; what shows through it where it is transparent."""

    path: Path
    facts: Facts
    background: str = "white"


class Example(NamedTuple):
    """A caption of the datasets, and what its picture starts from, if anything."""

    caption: str
    start: Start | None


def brought(start: Start, resolution: float, grid: int) -> tuple[Bucket, Fit]:
    """The size in pixels, of about that square's area, and how the picture becomes it."""
    bucket, (fit, *_) = place(start.path, start.facts, WHOLE, resolution, grid)
    return bucket, fit


def examples_of(trained: Sequence[Sample], judged: Sequence[Sample], most: int) -> list[Example]:
    """So many different captions at most, each with what it starts from; where there are references, of samples with one."""
    referring = (sample for sample in (*judged, *trained) if sample.reference is not None)
    found: dict[tuple[str, str], Example] = {}
    for sample in referring:
        if len(found) == most:
            break
        path, facts, *_ = sample.reference
        found.setdefault((sample.caption, facts.digest), Example(sample.caption, Start(path, facts, sample.background)))
    captions = dict.fromkeys(sample.caption for sample in trained) if not found else ()
    return list(found.values()) or [Example(caption, None) for caption in islice(captions, most)]


def starts_at(place_of_them: str) -> tuple[Start, ...]:
    """The picture at this path, or those of this folder by their names; none of an empty text. JobError where there is none."""
    if not place_of_them.strip():
        return ()
    path = expanded(place_of_them)
    files = sorted(found.path for found in find_files(path, PICTURE_SUFFIXES).files) if path.is_dir() else [path]
    if not files:
        raise JobError(f"validation_reference_path {path} holds no pictures; put some there, or clear it")
    return tuple(_looked_at(files))


def _looked_at(files: Iterable[Path]) -> Iterable[Start]:
    for file in files:
        if not file.is_file():
            raise JobError(f"validation_reference_path: there is no picture {file.absolute()}; correct or clear it")
        try:
            yield Start(file, look_at(file))
        except Reject as reason:
            raise JobError(f"validation_reference_path: {file} {reason}") from None
