"""Keeps the cache of encoded pictures and captions within its size: what was used longest ago goes first.

Whole shards are removed, by the time of their last use, which a run writes on those that it checks. What is needed now never
goes, even if it is above the limit by itself. Entries of format 2, a file each, are counted and removed too: they are never
read any more. Needs no torch.
"""

import logging
from collections.abc import Iterator, Set
from pathlib import Path

from .shards import PATTERN

GB = 1_000_000_000
KINDS = ("latents", "captions", "masks")
FORMAT_2 = "[0-9a-f][0-9a-f]/" + "[0-9a-f]" * 64 + ".safetensors"

log = logging.getLogger(__name__)


def make_room(cache_dir: Path, limit: float, needed: Set[Path]) -> None:
    """Remove shards that are not needed until at most `limit` bytes are left; a warning where the needed ones are more."""
    shards = []
    for path in shard_paths(cache_dir):
        try:
            stat = path.stat()
        except FileNotFoundError:  # another run makes room as well
            continue
        shards.append((stat.st_mtime_ns, path, stat.st_size))
    excess = sum(size for _, _, size in shards) - limit
    for _, path, size in sorted(shards):
        if excess <= 0:
            return
        if path not in needed:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:  # Windows removes no file that another run has open
                log.info("%s stays for now: %s", path, error)
                continue
            excess -= size
    if excess > 0:
        log.warning(
            "this run needs %.3g GB of the cache %s, above training.cache_size_limit %.3g; nothing needed is removed",
            (excess + limit) / GB,
            cache_dir,
            limit / GB,
        )


def shard_paths(cache_dir: Path) -> Iterator[Path]:
    """All that is of the cache, of this format and the one before."""
    for kind in KINDS:
        yield from (cache_dir / kind).glob(PATTERN)
        yield from (cache_dir / kind).glob(FORMAT_2)
