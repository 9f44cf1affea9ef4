"""The index: every picture of the job with its captions, facts and buckets, known before anything heavy is loaded.

A file that cannot be trained on is left out and named with the reason; what the user must decide (no caption, no folder) is
one error that lists it all. Needs no torch, so ComfyUI's DatasetBucket shows the same buckets that the run will use.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import JobError
from ..flux.flavours import Flavour
from ..run_dir import PICTURE_SUFFIXES, files_below
from ..specs.dataset import DatasetSpec
from .captions import caption_reader
from .crops import place
from .facts import look_at
from .masks import Mask, find_masks, mask_folder
from .references import ReferenceFile, find_references, look_at_reference, place_reference, reference_folder
from .sample import Facts, Index, Reject, Rejected, Sample
from .upright import check_mask

MAX_LISTED = 10

Progress = Callable[[int, int], None]


def index_datasets(
    datasets: tuple[DatasetSpec, ...],
    flavour: Flavour,
    cache_dir: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Index:
    """All samples of the datasets that are not disabled; one JobError lists all that the user must decide.

    What was learned of each file is kept below `cache_dir`, if given, for the next time.
    """
    samples: list[Sample] = []
    rejected: list[Rejected] = []
    problems: list[str] = []
    for spec in datasets:
        if spec.disabled:
            continue
        try:
            folder, pictures = _pictures(spec)
            masks, captions_of = find_masks(spec, folder, pictures), caption_reader(spec, folder)
            references = find_references(spec, folder, pictures)
        except JobError as error:
            problems.append(str(error))
            continue
        before = len(samples)
        for path in pictures:
            try:
                facts, captions = look_at(path), captions_of(path)
                if (mask := masks.get(path)) is not None:
                    check_mask(mask.path, path)
                reference = look_at_reference(references[path], path, facts, spec) if references else None
                samples += _in_each_resolution(path, facts, captions, mask, reference, spec, flavour)
            except Reject as reason:
                rejected.append(Rejected(spec.id, path, str(reason)))
            except JobError as error:
                problems.append(str(error))
        if len(samples) == before and not problems:
            reasons = "; ".join(dict.fromkeys(entry.reason for entry in rejected if entry.dataset_id == spec.id))
            problems.append(f"dataset {spec.id!r}: none of its {len(pictures)} pictures can be trained on: {reasons}")
    if problems:
        more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        raise JobError("\n".join(problems[:MAX_LISTED] + more))
    return Index(tuple(samples), tuple(rejected))


def count_buckets(samples: Iterable[Sample]) -> dict[str, int]:
    """How many pictures each bucket holds, the fullest first, by the bucket's name (such as '64x64')."""
    counts = Counter(str(sample.bucket) for sample in samples)
    return dict(counts.most_common())


def _in_each_resolution(
    path: Path,
    facts: Facts,
    captions: tuple[str, ...],
    mask: Mask | None,
    reference: ReferenceFile | None,
    spec: DatasetSpec,
    flavour: Flavour,
) -> list[Sample]:
    """The samples that one picture makes; Reject where the spec leaves it out."""
    samples = []
    for resolution in spec.resolution or (flavour.home_resolution,):
        bucket, views = place(path, facts, spec, resolution, flavour.grid)
        samples.append(
            Sample(
                spec.id,
                path,
                captions,
                facts,
                bucket,
                views,
                passes=1 + spec.repeats,
                mask=mask,
                reference=reference and place_reference(reference, spec, resolution, flavour.grid, bucket, views),
                background=spec.background,
                is_regularisation=spec.is_regularisation_data,
            )
        )
    return samples


def _pictures(spec: DatasetSpec) -> tuple[Path, list[Path]]:
    """The folder of a dataset and the pictures in it, which masks and references further down are not; JobError where there
    are none."""
    folder = Path(spec.instance_data_dir.strip()).expanduser()
    others = {"mask": mask_folder(spec), "reference": reference_folder(spec)}
    if not folder.is_dir():
        raise JobError(f"dataset {spec.id!r}: there is no folder {folder.absolute()}")
    pictures = files_below(folder, PICTURE_SUFFIXES)
    for kind, other in others.items():
        if other is None:
            continue
        if other.resolve() == folder.resolve():
            raise JobError(
                f"dataset {spec.id!r}: {kind}_data_dir is the folder of the pictures; put the {kind}s into one of their own"
            )
        if folder.resolve() in other.resolve().parents:
            pictures = [path for path in pictures if other.resolve() not in path.resolve().parents]
    if not pictures:
        kinds = ", ".join(sorted(PICTURE_SUFFIXES))
        raise JobError(f"dataset {spec.id!r}: no pictures in {folder.absolute()}; put some there ({kinds})")
    return folder, pictures
