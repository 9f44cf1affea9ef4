"""Common faults of datasets, each in a plain sentence with what to do: nothing here stops a run.

A check is a generator over the samples of one dataset; the tables at the end say which are asked of what. Where a check
guesses (a word that looks like a trigger word) it says what it saw, and the user decides.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..specs.dataset import DatasetSpec
from .sample import Sample

LARGEST_SCALE = 1.5  # a picture that is made larger than that has visibly no detail of its own
FULL_SHARE = 0.8
TRIGGER_SHARE = 0.8
FEWEST_TO_JUDGE = 5  # shares of fewer pictures say nothing
COMMON = """the and with for from that this his her its their into over under are was has have she they who while
photo photograph picture image painting drawing portrait style background"""


class Fault(NamedTuple):
    """What is wrong with a dataset and what to do. `kind` is for programs; `paths` are the pictures that it concerns."""

    dataset_id: str
    kind: str
    text: str
    mend: str
    paths: tuple[Path, ...] = ()


class Finding(NamedTuple):
    """A fault before it is known whose."""

    kind: str
    text: str
    mend: str
    paths: tuple[Path, ...] = ()


Check = Callable[[Sequence[Sample], DatasetSpec, int], Iterator[Finding]]


def find_faults(samples: Sequence[Sample], spec: DatasetSpec, batch_size: int) -> list[Fault]:
    """The faults of one dataset's samples."""
    checks = OF_ANY + (OF_TRAINED if spec.dataset_type == "image" else ())
    return [Fault(spec.id, *finding) for check in checks if samples for finding in check(samples, spec, batch_size)]


def find_leaks(samples: Sequence[Sample], datasets: Sequence[DatasetSpec]) -> list[Fault]:
    """Pictures that are judged and trained on as well, by their content."""
    judged = {spec.id for spec in datasets if spec.dataset_type == "eval"}
    trained = {sample.facts.digest for sample in samples if sample.dataset_id not in judged}
    faults = []
    for name in sorted(judged):
        contents = {sample.path: sample.facts.digest for sample in samples if sample.dataset_id == name}
        paths = tuple(path for path, digest in contents.items() if digest in trained)
        if paths:
            text = f"{share_of(len(paths), len(contents))} also trained on, so their loss says nothing of pictures never seen"
            faults.append(Fault(name, "judged_and_trained", text, "take them out of one of the two datasets", paths))
    return faults


def enlargement(sample: Sample) -> float:
    """How many times larger the picture is made; below 1 it is made smaller."""
    return max(sample.views[0].width / sample.facts.width, sample.views[0].height / sample.facts.height)


def share_of(count: int, total: int, things: str = "pictures") -> str:
    """Such as '3 of 40 pictures', 'all 40 pictures' or 'the only picture'."""
    if total == 1:
        return f"the only {things.removesuffix('s')}"
    return f"all {total} {things}" if count == total else f"{count} of {total} {things}"


def _enlarged(samples: Sequence[Sample], spec: DatasetSpec, batch_size: int) -> Iterator[Finding]:
    """A resolution that is far above most pictures, or else the few pictures that are very small for it."""
    for name, group in _by_resolution(samples, spec).items():
        small = [sample for sample in group if enlargement(sample) > LARGEST_SCALE]
        if not small:
            continue
        most = max(map(enlargement, small))
        share, paths = share_of(len(small), len(group)), tuple(sample.path for sample in small)
        if 2 * len(small) > len(group):
            areas = sorted(sample.facts.width * sample.facts.height for sample in group)
            edge = round(areas[len(areas) // 2] ** 0.5)
            yield Finding(
                "resolution_above_pictures",
                f"{name} is far above {share}: they are enlarged up to {most:.1f} times, and blur is learned",
                f"lower the resolution (half of the pictures have {edge}x{edge} pixels or fewer), or find larger pictures",
                paths,
            )
        else:
            yield Finding(
                "small_pictures",
                f"{share} very small for {name}: enlarged up to {most:.1f} times",
                "replace them by larger ones, take them out, or set minimum_image_size",
                paths,
            )


def _empty_captions(samples: Sequence[Sample], spec: DatasetSpec, batch_size: int) -> Iterator[Finding]:
    captions = _captions(samples)
    paths = tuple(path for path, caption in captions.items() if not caption.strip())
    if paths:
        yield Finding(
            "empty_captions",
            f"the caption of {share_of(len(paths), len(captions))} is empty: what they show comes out without being asked for",
            "write the captions, unless that is what you want",
            paths,
        )


def _same_captions(samples: Sequence[Sample], spec: DatasetSpec, batch_size: int) -> Iterator[Finding]:
    captions = _captions(samples)
    same = set(captions.values())
    if len(captions) > 1 and len(same) == 1 and same != {""} and spec.caption_strategy != "instanceprompt":
        yield Finding(
            "same_captions",
            f"all {len(captions)} pictures have the same caption, {_cut(*same)!r}: everything in them is learned as that",
            "describe each picture, or say that it is meant so with caption_strategy instanceprompt",
        )


def _trigger_word(samples: Sequence[Sample], spec: DatasetSpec, batch_size: int) -> Iterator[Finding]:
    """Captions without the word that nearly all others share. A trigger_word that is set is in every caption already."""
    captions = {path: caption for path, caption in _captions(samples).items() if caption.strip()}
    word = "" if spec.trigger_word.strip() else _shared_word(list(captions.values()))
    if word:
        without = tuple(path for path, caption in captions.items() if word not in _words(caption))
        yield Finding(
            "no_trigger_word",
            f"{share_of(len(without), len(captions), 'captions')} without {word!r}, which the others share",
            f"if that is your trigger word, set trigger_word to {word!r}, which puts it where it is missing",
            without,
        )


def _one_variant(samples: Sequence[Sample], spec: DatasetSpec, batch_size: int) -> Iterator[Finding]:
    if spec.caption_variants == 1 and (spec.shuffle_tags or spec.wildcards_dir):
        what = "tags are shuffled" if spec.shuffle_tags else "wildcards are filled"
        yield Finding(
            "one_variant",
            f"{what}, but caption_variants is 1, so each caption is always the same",
            "raise caption_variants, such as to 8",
        )


def _full_bucket(samples: Sequence[Sample], spec: DatasetSpec, batch_size: int) -> Iterator[Finding]:
    if spec.crop and spec.crop_aspect == "square":
        return  # one bucket is what was asked for
    for group in _by_resolution(samples, spec).values():
        bucket, count = Counter(sample.bucket for sample in group).most_common(1)[0]
        if len(group) >= FEWEST_TO_JUDGE and count > FULL_SHARE * len(group):
            yield Finding(
                "full_bucket",
                f"bucket {bucket} holds {share_of(count, len(group))}: hardly another shape is learned",
                "add pictures of other shapes, if the adapter is to make such",
            )


def _small_buckets(samples: Sequence[Sample], spec: DatasetSpec, batch_size: int) -> Iterator[Finding]:
    """What is still less than a batch once the dataset's small_buckets were merged or dropped."""
    counts: Counter[str] = Counter()
    for sample in samples:
        counts[str(sample.bucket)] += sample.passes
    small = {bucket: count for bucket, count in counts.items() if count < batch_size}
    if not small:
        return
    named = ", ".join(f"{bucket} ({count})" for bucket, count in list(small.items())[:4]) + ", …" * (len(small) > 4)
    yield Finding(
        "small_buckets",
        f"{share_of(len(small), len(counts), 'buckets')} {'holds' if len(small) == 1 else 'hold'} less than a batch of "
        f"{batch_size}, so their batches are smaller: {named}",
        "add pictures of these shapes, raise repeats, lower train_batch_size, or choose another small_buckets",
        tuple(dict.fromkeys(sample.path for sample in samples if str(sample.bucket) in small)),
    )


OF_ANY: tuple[Check, ...] = (_enlarged, _empty_captions)
OF_TRAINED: tuple[Check, ...] = (_same_captions, _trigger_word, _one_variant, _full_bucket, _small_buckets)


def _by_resolution(samples: Sequence[Sample], spec: DatasetSpec) -> dict[str, list[Sample]]:
    """The samples of each resolution, by its name; a picture's samples stand in the order of the resolutions."""
    groups: dict[str, list[Sample]] = {}
    seen: Counter[str] = Counter()
    for sample in samples:
        position = seen[sample.file]
        seen[sample.file] += 1
        name = f"resolution {spec.resolution[position]:g}" if spec.resolution else "the base's resolution"
        groups.setdefault(name, []).append(sample)
    return groups


def _captions(samples: Sequence[Sample]) -> dict[Path, str]:
    """The first form of each picture's caption."""
    return {sample.path: sample.caption for sample in samples}


def _shared_word(captions: Sequence[str]) -> str:
    """The word that nearly all captions hold, but not all of them; empty where there is none."""
    if len(captions) < FEWEST_TO_JUDGE:
        return ""
    common = frozenset(COMMON.split())
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(word for word in _words(caption) if word not in common)
    likely = [word for word, count in counts.items() if TRIGGER_SHARE <= count / len(captions) < 1]
    return max(likely, key=counts.__getitem__, default="")


def _words(caption: str) -> dict[str, None]:
    """The words of three letters or more, in their order and without their case."""
    return dict.fromkeys(word.casefold() for word in re.findall(r"\w{3,}", caption))


def _cut(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
