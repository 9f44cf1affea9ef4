"""Encoded pictures and captions on disk, so that an encoder runs once over each and is then freed.

An entry's name is a digest of all that its content depends on: the source's bytes, the geometry, the encoder file and this
format's version. A changed picture, resolution or encoder therefore meets another name, never a stale entry, and there is no
switch to trust the cache. Entries are written atomically and may be shared by any number of runs.
"""

import hashlib
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from ..run_dir import write_atomically

FORMAT = "2"


def entry_path(cache_dir: Path, kind: str, *parts: str) -> Path:
    """Where the entry made from these parts lies; kind is its sub-folder."""
    digest = hashlib.sha256("\0".join((FORMAT, kind, *parts)).encode()).hexdigest()
    return cache_dir / kind / digest[:2] / f"{digest}.safetensors"


def content_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_entry(path: Path, tensors: dict[str, Tensor]) -> None:
    write_atomically(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def read_entry(path: Path) -> dict[str, Tensor]:
    return load_file(path)
