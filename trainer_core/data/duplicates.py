"""Pictures that are in a dataset twice: the same bytes, or another copy that looks the same.

Comparing the looks of a hundred thousand pictures with each other would be five thousand million comparisons. Two looks of 64
bits that differ in at most `most` of them differ, in one of most // 2 + 1 bands, in at most one bit; so only those are
compared that share a band, or meet in it after one bit is turned (multi-index hashing, Norouzi et al. 2012). The bands take
every n-th bit, as neighbouring ones, those of a plain sky say, are alike in very many pictures. Looks with few bits on or off,
as plain pictures have, are within a few bits of each other by chance; they count as alike only where they are the same.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations, product
from pathlib import Path

from .sample import Sample

Group = tuple[Path, ...]  # in the order of the samples

LOOK_BITS = 64
PLAIN = 12  # so few bits that are on, or off, say little
ALIKE = 6  # bits in which resized, recompressed and slightly edited copies of a picture differ at most, as a rule


def exact(samples: Iterable[Sample]) -> list[Group]:
    """Files of the same bytes, each counted once whatever its resolutions."""
    return [group for group in _by_digest(samples).values() if len(group) > 1]


def near(samples: Iterable[Sample], most: int = ALIKE) -> list[Group]:
    """Pictures of other bytes whose looks differ in at most `most` of 64 bits from the first of their group.

    Of files with the same bytes only the first is counted, and each picture is in one group at most.
    """
    samples = list(samples)
    by_look: dict[int, list[Path]] = defaultdict(list)
    looks = {sample.facts.digest: sample.facts.look for sample in samples}
    for digest, files in _by_digest(samples).items():
        by_look[looks[digest]].append(files[0])
    neighbours: dict[int, list[int]] = defaultdict(list)
    for one, other in _pairs([look for look in by_look if not _is_plain(look)], most):
        neighbours[one].append(other)
        neighbours[other].append(one)
    groups, taken = [], set()
    place = {look: number for number, look in enumerate(by_look)}
    for look, files in by_look.items():
        if look in taken:
            continue
        alike = sorted((other for other in neighbours.get(look, ()) if other not in taken), key=place.__getitem__)
        taken.update(alike)
        if group := (*files, *(path for other in alike for path in by_look[other])):
            groups.append(group)
    return [group for group in groups if len(group) > 1]


def _is_plain(look: int) -> bool:
    return not PLAIN <= look.bit_count() <= LOOK_BITS - PLAIN


def _by_digest(samples: Iterable[Sample]) -> dict[str, list[Path]]:
    """The files of each content."""
    files: dict[str, dict[str, None]] = defaultdict(dict)
    for sample in samples:
        files[sample.facts.digest][sample.file] = None
    return {digest: list(map(Path, paths)) for digest, paths in files.items()}


def _pairs(looks: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Each two of these different looks that differ in at most `most` bits, once."""
    bands = most // 2 + 1
    found: set[tuple[int, int]] = set()
    for band in range(bands):
        bits = [1 << bit for bit in range(band, LOOK_BITS, bands)]
        mask = sum(bits)
        buckets: dict[int, list[int]] = defaultdict(list)
        for look in looks:
            buckets[look & mask].append(look)
        for part, bucket in buckets.items():
            candidates = [combinations(bucket, 2)]
            candidates += [product(bucket, buckets[part | bit]) for bit in bits if not part & bit and part | bit in buckets]
            for pairs in candidates:
                found.update(pair for pair in pairs if (pair[0] ^ pair[1]).bit_count() <= most)
    yield from {(min(pair), max(pair)) for pair in found}
