"""What a target is: something that reads files that may come from anybody, with a few good files to spoil."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Target:
    """`seeds` makes the good files, given an empty folder. `feed` gives a file's bytes, and a folder to put them into, to what
    reads them, and lets out what that raises."""

    seeds: Callable[[Path], list[bytes]]
    feed: Callable[[bytes, Path], None]


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path
