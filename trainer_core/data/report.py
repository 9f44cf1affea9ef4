"""What a dataset comes to, for people and for programs: counts, sizes, buckets, what is left out and why, likely faults.

Made from the index alone, so it costs no second look at any file. Pictures are counted once however many resolutions show
them; "an epoch" counts what an epoch shows, with resolutions and repeats. Needs no torch: ComfyUI's DatasetBucket and
`flux-lora dataset` say the same.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from ..file_names import expanded
from ..specs.dataset import DatasetSpec
from .buckets import Bucket
from .duplicates import exact, near
from .lint import Fault, enlargement, find_faults, find_leaks
from .sample import Index, Rejected, Sample

MOST_LINES, MOST_GROUPS, MOST_NAMED, LONGEST_CAPTION = 20, 5, 5, 100


class BucketCount(NamedTuple):
    """One bucket of one dataset: its pictures, how often an epoch shows one of them, and in how many batches."""

    bucket: Bucket
    pictures: int
    per_epoch: int
    batches: int


class Sizes(NamedTuple):
    """Upright sizes in pixels, ordered by area; `enlarged` pictures are smaller than what they are brought to."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    enlarged: int


class CaptionFacts(NamedTuple):
    """First forms of the captions; `most_forms` is the largest number of forms that one picture's caption has."""

    distinct: int
    shortest: str
    longest: str
    empty: int
    most_forms: int


class CacheState(NamedTuple):
    """How much of what a run needs is encoded already."""

    latents: int
    of_latents: int
    captions: int
    of_captions: int


@dataclass(frozen=True)
class Part:
    """The facts of one dataset, or of all that are trained on. Sizes and captions are None where there is no picture."""

    id: str
    folder: str
    purpose: str
    pictures: int
    resolutions: int
    passes: int
    per_epoch: int
    latents: int
    sizes: Sizes | None
    captions: CaptionFacts | None
    masks: int
    references: int
    buckets: tuple[BucketCount, ...]
    rejected: tuple[Rejected, ...]

    @property
    def batches(self) -> int:
        return sum(bucket.batches for bucket in self.buckets)


@dataclass(frozen=True)
class DatasetReport:
    """Everything; `total` is of what is trained on. `duplicates` and `near_duplicates` are groups of pictures."""

    parts: tuple[Part, ...]
    total: Part
    batch_size: int
    accumulation: int
    steps_per_epoch: int
    duplicates: tuple[tuple[Path, ...], ...]
    near_duplicates: tuple[tuple[Path, ...], ...]
    faults: tuple[Fault, ...]
    cache: CacheState | None

    def to_json(self) -> dict[str, Any]:
        """Plain values, with every path and every reason."""
        data = _plain(self)
        for part, facts in zip((*data["parts"], data["total"]), (*self.parts, self.total), strict=True):
            part["batches"] = facts.batches
        return data

    def describe(self) -> str:
        """The report as text, a few lines a dataset."""
        lines = [line for part in self.parts for line in (*_describe_part(part), "")]
        if len(self.parts) > 1:
            lines += [f"in all: {_count(self.total.pictures, 'picture')} to train on, {self.total.per_epoch} an epoch"]
        steps = f"steps per epoch: {self.steps_per_epoch} at batch size {self.batch_size}"
        lines.append(steps + (f", {self.accumulation} batches a step" if self.accumulation > 1 else ""))
        if self.cache:
            latents, of_latents, captions, of_captions = self.cache
            lines.append(f"cache: {latents} of {of_latents} latents and {captions} of {of_captions} captions are encoded")
        lines += [*_describe_groups("same content", self.duplicates), *_describe_groups("look alike", self.near_duplicates)]
        return "\n".join([*lines, "", *self._describe_faults()])

    def _describe_faults(self) -> list[str]:
        if not self.faults:
            return ["nothing to mend was found"]
        several = len(self.parts) > 1
        lines = ["worth a look:"]
        for fault in self.faults:
            where = f"{fault.dataset_id}: " if several else ""
            names = f" [{_named(fault.paths)}]" if fault.paths else ""
            lines += [f"  - {where}{fault.text}{names}", f"    mend: {fault.mend}"]
        return lines


def make_report(
    index: Index,
    datasets: Sequence[DatasetSpec],
    batch_size: int,
    *,
    accumulation: int = 1,
    encoded: Callable[[Sequence[Sample]], CacheState | None] | None = None,
) -> DatasetReport:
    """The report on an index of these datasets. `encoded` is asked, if given, how much of the samples is in the cache."""
    of_dataset = defaultdict(list)
    for sample in index.samples:
        of_dataset[sample.dataset_id].append(sample)
    parts = tuple(_part(spec, of_dataset[spec.id], index.rejected, batch_size) for spec in datasets)
    trained = [spec.id for spec in datasets if spec.dataset_type == "image"]
    total = _total([part for part in parts if part.id in trained], [s for s in index.samples if s.dataset_id in trained])
    return DatasetReport(
        parts=parts,
        total=total,
        batch_size=batch_size,
        accumulation=accumulation,
        steps_per_epoch=math.ceil(total.batches / accumulation),
        duplicates=tuple(exact(index.samples)),
        near_duplicates=tuple(near(index.samples)),
        faults=(
            *(fault for spec in datasets for fault in find_faults(of_dataset[spec.id], spec, batch_size)),
            *find_leaks(index.samples, datasets),
        ),
        cache=encoded(index.samples) if encoded else None,
    )


def group_reasons(rejected: Sequence[Rejected]) -> dict[str, list[Path]]:
    """Files by why they are left out, the most frequent first. Names within a reason go; numbers that differ become '…'."""
    alike: dict[tuple[str, ...], list[tuple[list[str], Path]]] = defaultdict(list)
    for _, path, reason in rejected:
        reason = bare_reason(path, reason)
        words = re.split(r"(\d+(?:\.\d+)?)", reason)
        alike[tuple(words[::2])].append((words[1::2], path))
    groups = {}
    for between, entries in alike.items():
        columns = zip(*(numbers for numbers, _ in entries), strict=True)
        shown = [column[0] if len(set(column)) == 1 else "…" for column in columns] + [""]
        text = "".join(word + number for word, number in zip(between, shown, strict=True))
        groups[text] = [path for _, path in entries]
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def bare_reason(path: Path, reason: str) -> str:
    """A reason without the file's own path and name."""
    for name in (str(path), path.name):
        for written in (repr(name), f"'{name}'", name):
            reason = reason.replace(f" {written}", "").removeprefix(f"{written} ")
    return reason


def _part(spec: DatasetSpec, samples: Sequence[Sample], rejected: Sequence[Rejected], batch_size: int) -> Part:
    purpose = {"image": "trained on", "eval": "evaluation"}[spec.dataset_type]
    if spec.is_regularisation_data:
        purpose = "regularisation"
    return _facts(
        spec.id,
        str(expanded(spec.instance_data_dir).absolute()),
        "disabled" if spec.disabled else purpose,
        samples,
        buckets=_buckets(samples, batch_size),
        rejected=[entry for entry in rejected if entry.dataset_id == spec.id],
    )


def _total(parts: Sequence[Part], samples: Sequence[Sample]) -> Part:
    """All that is trained on. A bucket stands here once for each dataset, for no batch holds pictures of two."""
    buckets = [bucket for part in parts for bucket in part.buckets]
    return _facts("", "", "trained on", samples, buckets, [entry for part in parts for entry in part.rejected])


def _facts(
    name: str,
    folder: str,
    purpose: str,
    samples: Sequence[Sample],
    buckets: Sequence[BucketCount],
    rejected: Sequence[Rejected],
) -> Part:
    pictures = {sample.file: sample for sample in samples}
    return Part(
        id=name,
        folder=folder,
        purpose=purpose,
        pictures=len(pictures),
        resolutions=max((len(list(group)) for _, group in groupby(samples, key=lambda s: (s.dataset_id, s.file))), default=0),
        passes=max((sample.passes for sample in samples), default=0),
        per_epoch=sum(sample.passes for sample in samples),
        latents=sum(len(sample.views) for sample in samples),
        sizes=_sizes(samples) if samples else None,
        captions=_caption_facts(list(pictures.values())) if samples else None,
        masks=sum(sample.mask is not None for sample in pictures.values()),
        references=sum(sample.reference is not None for sample in pictures.values()),
        buckets=tuple(buckets),
        rejected=tuple(rejected),
    )


def _sizes(samples: Sequence[Sample]) -> Sizes:
    sizes = {sample.file: (sample.facts.width, sample.facts.height) for sample in samples}
    ordered = sorted(sizes.values(), key=lambda size: (size[0] * size[1], size))
    enlarged = {sample.file for sample in samples if enlargement(sample) > 1}
    return Sizes(ordered[0], ordered[len(ordered) // 2], ordered[-1], len(enlarged))


def _caption_facts(pictures: Sequence[Sample]) -> CaptionFacts:
    captions = [sample.caption for sample in pictures]
    return CaptionFacts(
        distinct=len(set(captions)),
        shortest=min(captions, key=len),
        longest=max(captions, key=len),
        empty=sum(not caption.strip() for caption in captions),
        most_forms=max(len(sample.captions) for sample in pictures),
    )


def _buckets(samples: Sequence[Sample], batch_size: int) -> list[BucketCount]:
    """The buckets of one dataset, the fullest first."""
    of_bucket: dict[Bucket, list[Sample]] = defaultdict(list)
    for sample in samples:
        of_bucket[sample.bucket].append(sample)
    counts = [
        BucketCount(bucket, len(each), sum(sample.passes for sample in each), _batches(each, batch_size))
        for bucket, each in of_bucket.items()
    ]
    return sorted(counts, key=lambda count: (-count.pictures, count.bucket))


def _batches(samples: Sequence[Sample], batch_size: int) -> int:
    """How many batches an epoch has of one bucket, whose references may be of several."""
    shown: Counter[Bucket | None] = Counter()
    for sample in samples:
        shown[sample.reference.bucket if sample.reference else None] += sample.passes
    return sum(math.ceil(count / batch_size) for count in shown.values())


def _describe_part(part: Part) -> list[str]:
    """A dataset in a few lines, each a name and what is to be said of it."""
    head = f"dataset {part.id!r} ({part.purpose}): {_count(part.pictures, 'picture')} in {part.folder}"
    return [
        head,
        *(f"  {name:<12}{text}" for name, text in _rows(part)),
        *_describe_buckets(part.buckets),
        *_describe_rejected(part.rejected),
    ]


def _rows(part: Part) -> Iterator[tuple[str, str]]:
    if part.sizes is None or part.captions is None:
        return
    ways = [f"{part.resolutions} resolutions"] * (part.resolutions > 1) + [f"{part.passes} passes"] * (part.passes > 1)
    yield "an epoch", f"{part.per_epoch} to see" + (f": {_count(part.pictures, 'picture')}, {', '.join(ways)}" if ways else "")
    if part.latents > part.pictures:
        yield "latents", f"{part.latents} with all crops, mirror images and resolutions"
    smallest, middle, largest = (f"{width}x{height}" for width, height in part.sizes[:3])
    enlarged = f"; {part.sizes.enlarged} of {part.pictures} are enlarged" if part.sizes.enlarged else ""
    yield "sizes", f"{smallest} the smallest, {middle} the median, {largest} the largest{enlarged}"
    captions = part.captions
    words = [len(caption.split()) for caption in (captions.shortest, captions.longest)]
    spoken = f"{words[0]} to " * (words[0] != words[1]) + _count(words[1], "word")
    forms = f", up to {captions.most_forms} forms each" if captions.most_forms > 1 else ""
    empty = f", {captions.empty} empty" if captions.empty else ""
    yield "captions", f"{captions.distinct} different, {spoken}{forms}{empty}"
    if captions.distinct > 1:
        yield "  shortest", _cut(captions.shortest)
    yield "  longest", _cut(captions.longest)
    yield "masks", f"{part.masks} of {part.pictures} pictures have one" if part.masks else "none"
    if part.references:
        yield "references", f"{part.references} of {part.pictures} pictures have one"


def _describe_buckets(buckets: Sequence[BucketCount]) -> list[str]:
    if not buckets:
        return []
    lines = [f"  {'bucket':<12}{'pictures':>10}{'an epoch':>10}{'batches':>10}"]
    lines += [
        f"  {bucket!s:<12}{pictures:>10}{shown:>10}{batches:>10}" for bucket, pictures, shown, batches in buckets[:MOST_LINES]
    ]
    rest = buckets[MOST_LINES:]
    if rest:
        sums = [sum(column) for column in list(zip(*rest, strict=True))[1:]]
        lines.append(f"  {f'{len(rest)} more':<12}" + "".join(f"{value:>10}" for value in sums))
    return lines


def _describe_rejected(rejected: Sequence[Rejected]) -> list[str]:
    if not rejected:
        return []
    groups = group_reasons(rejected)
    lines = [f"  left out: {_count(len(rejected), 'file')}"]
    lines += [f"    {len(paths)} x {reason} [{_named(paths)}]" for reason, paths in list(groups.items())[:MOST_LINES]]
    return lines + [f"    and for {len(groups) - MOST_LINES} more reasons"] * (len(groups) > MOST_LINES)


def _describe_groups(title: str, groups: Sequence[Sequence[Path]]) -> list[str]:
    if not groups:
        return []
    lines = [f"{title}: {_count(len(groups), 'group')} of pictures"]
    lines += [f"  {_named(group)}" for group in groups[:MOST_GROUPS]]
    return lines + [f"  and {len(groups) - MOST_GROUPS} groups more"] * (len(groups) > MOST_GROUPS)


def _named(paths: Sequence[Path]) -> str:
    """The first names; control characters in them are shown as escapes."""
    names = [path.name if path.name.isprintable() else repr(path.name) for path in paths[:MOST_NAMED]]
    return ", ".join(names) + (f" and {len(paths) - MOST_NAMED} more" if len(paths) > MOST_NAMED else "")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + "s" * (number != 1)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_CAPTION else text[: LONGEST_CAPTION - 1] + "…"


def _plain(value: Any) -> Any:
    """The value for JSON: records as objects, paths and buckets as text."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Bucket | Path):
        return str(value)
    if isinstance(value, tuple):
        named = type(value) is not tuple
        return {key: _plain(entry) for key, entry in value._asdict().items()} if named else [_plain(entry) for entry in value]
    return value
