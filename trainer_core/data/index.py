"""The index: every picture of the job with its captions, facts and buckets, known before anything heavy is loaded.

A file that cannot be trained on is left out and named with the reason; what the user must decide (no caption, no folder) is
one error that lists it all. There may be a hundred thousand pictures: each file is looked at once, for all datasets and
resolutions together, and what samples have in common (facts, buckets, views, captions) they share. Needs no torch, so
ComfyUI's DatasetBucket shows the same buckets that the run will use.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..errors import JobError
from ..file_names import expanded
from ..flux.flavours import Flavour
from ..run_dir import PICTURE_SUFFIXES
from ..specs.dataset import DatasetSpec
from ..uncollected import uncollected
from .captions import CaptionReader, caption_reader
from .crops import Placer, placer, require_detector, warn_of_missing_faces
from .facts import MEND
from .file_memory import Learned, Progress, learn, now_and_then
from .find import Found, LeftOut, as_text, find_files, subset, words_of
from .masks import Mask, alpha_mask, find_masks, mask_folder
from .references import ReferenceFile, check_reference, find_references, place_reference, reference_folder
from .sample import Facts, Index, Reject, Rejected, Sample
from .upright import check_mask

MAX_LISTED = 10

Shared = TypeVar("Shared", bound=Hashable)


class Source(NamedTuple):
    """A dataset's files, before any was opened, and where their captions, masks and references are."""

    spec: DatasetSpec
    files: list[Found]
    left_out: list[LeftOut]
    captions_of: CaptionReader
    masks: Mapping[Path, Mask]
    references: Mapping[Path, Found]


def index_datasets(
    datasets: tuple[DatasetSpec, ...],
    flavour: Flavour,
    cache_dir: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Index:
    """All samples of the datasets that are not disabled; one JobError lists all that the user must decide.

    What was learned of each file is kept below `cache_dir`, if given, for the next time.
    """
    problems: list[str] = []
    sources: list[Source] = []
    with uncollected():
        for spec in datasets:
            if not spec.disabled:
                try:
                    sources.append(open_source(spec))
                except JobError as error:
                    problems.append(str(error))
    learned = learn([file for one in sources for file in (*one.files, *one.references.values())], cache_dir, progress)
    samples: list[Sample] = []
    rejected: list[Rejected] = []
    shared = Pool()
    for source in sources:
        with uncollected():
            taken, refused, undecided = _samples_of(source, learned, flavour, shared, progress)
        samples += taken
        rejected += refused
        problems += undecided
        if not (taken or undecided):
            reasons = "; ".join(list(dict.fromkeys(entry.reason for entry in refused))[:MAX_LISTED])
            problems.append(
                f"dataset {source.spec.id!r}: none of its {len(source.files)} pictures can be trained on: {reasons}"
            )
    if problems:
        more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        raise JobError("\n".join(problems[:MAX_LISTED] + more))
    return Index(tuple(samples), tuple(rejected))


def count_buckets(samples: Iterable[Sample]) -> dict[str, int]:
    """How many pictures each bucket holds, the fullest first, by the bucket's name (such as '64x64')."""
    counts = Counter(str(sample.bucket) for sample in samples)
    return dict(counts.most_common())


def open_source(spec: DatasetSpec) -> Source:
    """What a dataset is made of, by its names alone; JobError where there is nothing."""
    folder = expanded(spec.instance_data_dir)
    others = {"mask": mask_folder(spec), "reference": reference_folder(spec)}
    if not folder.is_dir():
        raise JobError(f"dataset {spec.id!r}: there is no folder {folder.absolute()}")
    for kind, other in others.items():
        if other is not None and other.resolve() == folder.resolve():
            raise JobError(
                f"dataset {spec.id!r}: {kind}_data_dir is the folder of the pictures; put the {kind}s into one of their own"
            )
    files, left_out = find_files(folder, PICTURE_SUFFIXES, without=filter(None, others.values()))
    if not files:
        kinds = ", ".join(sorted(PICTURE_SUFFIXES))
        odd = "".join(f"; {entry.path} {entry.reason}" for entry in left_out[:MAX_LISTED])
        raise JobError(f"dataset {spec.id!r}: no pictures in {folder.absolute()}; put some there ({kinds}){odd}")
    if spec.max_num_samples:
        files = subset(files, spec.max_num_samples, spec.id)
    require_detector(spec)
    pictures = [file.path for file in files] if any(others.values()) else []
    masks, references = find_masks(spec, folder, pictures), find_references(spec, folder, pictures)
    return Source(spec, files, left_out, caption_reader(spec, folder), masks, references)


class Pool:
    """Keeps one of equal things, so that a hundred thousand samples do not hold as many copies of a bucket."""

    def __init__(self) -> None:
        self._things: dict[Hashable, Hashable] = {}

    def one(self, thing: Shared) -> Shared:
        return self._things.setdefault(thing, thing)


def _samples_of(
    source: Source, learned: Learned, flavour: Flavour, shared: Pool, progress: Progress
) -> tuple[list[Sample], list[Rejected], list[str]]:
    """The samples of a dataset, the files that are left out, and what the user must decide."""
    spec = source.spec
    samples: list[Sample] = []
    rejected = [Rejected(spec.id, path, f"{reason}; {MEND}") for path, reason in source.left_out]
    undecided: list[str] = []
    placers = {size: placer(spec, size, flavour.grid) for size in spec.resolution or (flavour.home_resolution,)}
    still = now_and_then(progress)
    for file in source.files:
        still(len(learned), len(learned))  # captions and faces take their time, and whoever looks on may wish to leave
        told = learned[file.place]
        try:
            if isinstance(told, str):
                raise Reject(told)
            captions = tuple(map(as_text, source.captions_of(file)))
            mask = source.masks.get(file.path) if source.masks else None  # a path takes its time to be made
            if mask is not None:
                check_mask(mask.path, file.path)
            mask = mask or (alpha_mask(spec, file.path) if told.has_alpha else None)
            reference = None
            if source.references and (own := source.references.get(file.path)) is not None:
                reference = check_reference(own.path, learned[own.place], file.path, told, spec)
            samples += _in_each_resolution(file, told, shared.one(captions), mask, reference, spec, flavour.grid, placers)
        except Reject as reason:
            rejected.append(Rejected(spec.id, file.path, str(reason)))
        except JobError as error:
            undecided.append(str(error))
        except OSError as error:  # a caption that is a folder, say, or may not be read
            rejected.append(Rejected(spec.id, file.path, f"its caption cannot be read: {error.filename} {words_of(error)}"))
    warn_of_missing_faces(spec, samples)
    return samples, rejected, undecided


def _in_each_resolution(
    file: Found,
    facts: Facts,
    captions: tuple[str, ...],
    mask: Mask | None,
    reference: ReferenceFile | None,
    spec: DatasetSpec,
    grid: int,
    placers: Mapping[float, Placer],
) -> list[Sample]:
    """The samples that one picture makes; Reject where the spec leaves it out."""
    samples = []
    for resolution, place in placers.items():
        bucket, views = place(file, facts)
        samples.append(
            Sample(
                spec.id,
                file.file,
                captions,
                facts,
                bucket,
                views,
                passes=1 + spec.repeats,
                mask=mask,
                reference=reference and place_reference(reference, spec, resolution, grid, bucket, views),
                background=spec.background,
                is_regularisation=spec.is_regularisation_data,
            )
        )
    return samples
