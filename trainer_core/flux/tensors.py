"""A model's tensors by name, wherever and however they are stored: read one at a time, never all at once.

The one idea: what reads a model (the loader, the plan, the recognition of dialects) sees a `TensorSource`: names with shapes
at no cost, and `read` for one tensor, or some rows of it. A safetensors file is mapped into memory, so what is read from it
is a view of the file, which the system can drop and fetch again; only what is converted or moved takes memory of its own.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import JobError
from .files import read_header

INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """One tensor as it lies in the file: its logical shape, the file's name for its format, its bytes there."""

    shape: tuple[int, ...]
    dtype: str
    num_bytes: int

    @property
    def num_values(self) -> int:
        return prod(self.shape)


class TensorSource(Protocol):
    """Tensors by name. `read` gives a tensor of floating numbers on the CPU, in the file's format where torch has it."""

    @property
    def path(self) -> Path: ...

    @property
    def entries(self) -> Mapping[str, Stored]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The tensor, or its rows from the first to before the last. KeyError when there is no such name."""
        ...


@dataclass(frozen=True)
class SafetensorsSource:
    """One safetensors file, or the shards of a folder with an index. `files` says which file holds a tensor."""

    path: Path
    entries: Mapping[str, Stored]
    metadata: Mapping[str, str]
    files: Mapping[str, Path]
    _opened: dict[Path, Any] = field(default_factory=dict, repr=False)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        path = self.files[name]
        try:
            if path not in self._opened:
                self._opened[path] = safe_open(path, framework="pt")
            if rows is None:
                return self._opened[path].get_tensor(name)
            return self._opened[path].get_tensor(name)[rows[0] : rows[1]]
        except SafetensorError as error:
            raise JobError(f"{path} cannot be read: {error}; download or copy it again") from None


@dataclass(frozen=True)
class Renamed:
    """Another source under other names: `names` maps ours to its own. What is not in it is not seen."""

    source: TensorSource
    names: Mapping[str, str]

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.source.metadata

    @property
    def entries(self) -> Mapping[str, Stored]:
        return {name: self.source.entries[own] for name, own in self.names.items()}

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        return self.source.read(self.names[name], rows)


def open_tensors(path: Path) -> TensorSource:
    """The tensors of a file, or of a folder that diffusers wrote. JobError when it is not one that is read."""
    files = _shards(path) if path.is_dir() else [path]
    entries, where, metadata = {}, {}, {}
    for file in files:
        for name, entry in read_header(file).items():
            if name == "__metadata__":
                metadata |= entry
                continue
            first, end = entry["data_offsets"]
            entries[name] = Stored(tuple(entry["shape"]), entry["dtype"], end - first)
            where[name] = file
    return SafetensorsSource(path, entries, metadata, where)


def with_prefix(source: TensorSource, prefix: str) -> TensorSource:
    """What stands under a prefix, without it; the source itself where the prefix is empty."""
    if not prefix:
        return source
    return Renamed(source, {name.removeprefix(prefix): name for name in source.entries if name.startswith(prefix)})


def _shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those that its index names, else all."""
    indices = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    if indices:
        named = json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / name for name in sorted(set(named))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.exists()]
    if missing or not files:
        raise JobError(f"{folder} lacks {', '.join(missing) or 'a .safetensors file'}; download or copy it again")
    return files
