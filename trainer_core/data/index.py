"""The index: every picture of the job with its caption, size and bucket, known before anything heavy is loaded.

All problems of all files are found here and reported together. Needs Pillow only, so ComfyUI's DatasetBucket shows the
same buckets that the run will use.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import JobError
from ..flux.flavours import Flavour
from ..run_dir import PICTURE_SUFFIXES, files_below
from ..specs.dataset import DatasetSpec
from .buckets import Bucket, bucket_for
from .captions import caption_of

MAX_LISTED = 10
SWAPS_AXES = frozenset({5, 6, 7, 8})  # values of the EXIF orientation that turn the picture by a quarter
EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Sample:
    """A picture and its caption. `width` and `height` are those of the file, upright, in pixels."""

    dataset_id: str
    path: Path
    caption: str
    width: int
    height: int
    bucket: Bucket


def index_datasets(datasets: tuple[DatasetSpec, ...], flavour: Flavour) -> list[Sample]:
    """All samples, in the order of datasets and paths; one JobError lists all that is wrong."""
    samples: list[Sample] = []
    problems: list[str] = []
    for spec in datasets:
        for path in _pictures(spec, problems):
            try:
                width, height = upright_size(path)
                bucket = bucket_for(width, height, spec.resolution or flavour.home_resolution, flavour.grid)
                samples.append(Sample(spec.id, path, caption_of(path, spec), width, height, bucket))
            except JobError as error:
                problems.append(str(error))
    if problems:
        more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        raise JobError("\n".join(problems[:MAX_LISTED] + more))
    return samples


def count_buckets(samples: Iterable[Sample]) -> dict[str, int]:
    """How many pictures each bucket holds, the fullest first, by the bucket's name (such as '64x64')."""
    counts = Counter(str(sample.bucket) for sample in samples)
    return dict(counts.most_common())


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels after the EXIF orientation; JobError when the file cannot be read as a picture."""
    try:
        with Image.open(path) as image:
            image.verify()  # closes the file, so it is opened again
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(EXIF_ORIENTATION) in SWAPS_AXES
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise JobError(f"picture {path} cannot be read ({error}); replace it or take it out of the folder") from None
    return (height, width) if turned else (width, height)


def _pictures(spec: DatasetSpec, problems: list[str]) -> list[Path]:
    """The picture files of a dataset; notes a problem where there are none."""
    folder = Path(spec.instance_data_dir.strip()).expanduser()
    if not folder.is_dir():
        problems.append(f"dataset {spec.id!r}: there is no folder {folder.absolute()}")
        return []
    pictures = files_below(folder, PICTURE_SUFFIXES)
    if not pictures:
        kinds = ", ".join(sorted(PICTURE_SUFFIXES))
        problems.append(f"dataset {spec.id!r}: no pictures in {folder.absolute()}; put some there ({kinds})")
    return pictures
