"""The index: every picture of the job with its caption, size and bucket, known before anything heavy is loaded.

All problems of all files are found here and reported together. Needs Pillow only, so ComfyUI's DatasetBucket shows the
same buckets that the run will use.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import JobError
from ..flux.flavours import Flavour
from ..run_dir import PICTURE_SUFFIXES, files_below
from ..specs.dataset import DatasetSpec
from .buckets import Bucket, bucket_for
from .captions import caption_of
from .masks import Mask, find_masks, mask_folder
from .upright import check_mask, upright_size

MAX_LISTED = 10


@dataclass(frozen=True)
class Sample:
    """A picture and its caption. `width` and `height` are those of the file, upright, in pixels.

    Where `is_regularisation`, the adapter is to change nothing.
    """

    dataset_id: str
    path: Path
    caption: str
    width: int
    height: int
    bucket: Bucket
    mask: Mask | None = None
    is_regularisation: bool = False


def index_datasets(datasets: tuple[DatasetSpec, ...], flavour: Flavour) -> list[Sample]:
    """All samples, in the order of datasets and paths; one JobError lists all that is wrong."""
    samples: list[Sample] = []
    problems: list[str] = []
    for spec in datasets:
        try:
            folder, pictures = _pictures(spec)
            masks = find_masks(spec, folder, pictures)
        except JobError as error:
            problems.append(str(error))
            continue
        for path in pictures:
            try:
                samples.append(_sample(path, masks.get(path), spec, flavour))
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


def _sample(path: Path, mask: Mask | None, spec: DatasetSpec, flavour: Flavour) -> Sample:
    """One picture; JobError says what is wrong with it, its caption or its mask."""
    width, height = upright_size(path)
    if mask is not None:
        check_mask(mask.path, path)
    bucket = bucket_for(width, height, spec.resolution or flavour.home_resolution, flavour.grid)
    return Sample(spec.id, path, caption_of(path, spec), width, height, bucket, mask, spec.is_regularisation_data)


def _pictures(spec: DatasetSpec) -> tuple[Path, list[Path]]:
    """The folder of a dataset and the pictures in it, which masks further down are not; JobError where there are none."""
    folder, masks_dir = Path(spec.instance_data_dir.strip()).expanduser(), mask_folder(spec)
    if not folder.is_dir():
        raise JobError(f"dataset {spec.id!r}: there is no folder {folder.absolute()}")
    if masks_dir is not None and masks_dir.resolve() == folder.resolve():
        raise JobError(f"dataset {spec.id!r}: mask_data_dir is the folder of the pictures; put the masks into one of their own")
    pictures = files_below(folder, PICTURE_SUFFIXES)
    if masks_dir is not None:
        pictures = [path for path in pictures if masks_dir.resolve() not in path.resolve().parents]
    if not pictures:
        kinds = ", ".join(sorted(PICTURE_SUFFIXES))
        raise JobError(f"dataset {spec.id!r}: no pictures in {folder.absolute()}; put some there ({kinds})")
    return folder, pictures
