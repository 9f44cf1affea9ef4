"""A model's tensors by name, wherever and however they are stored: read one at a time, never all at once.

The one idea: what reads a model (the loader, the plan, the recognition of dialects) sees a `TensorSource`: names with shapes
at no cost, and `read` for one tensor, or some rows of it. A safetensors file is mapped into memory, so what is read from it
is a view of the file, which the system can drop and fetch again; only what is converted or moved takes memory of its own.
What was read counts as this process's memory for as long as its mapping lives, so a file is mapped anew after so many bytes:
the mapping before goes as soon as nothing views it.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import JobError
from .files import PICKLES, check_kind, read_header

INDEX_SUFFIX = ".safetensors.index.json"
USUAL_NAMES = {"diffusion_pytorch_model.safetensors", "model.safetensors"}  # diffusers' and transformers'
SCALES = (".scale_weight", ".weight_scale")  # ComfyUI's name of a weight's scale, until late 2025 and since
MARKS = ("scaled_fp8", ".scale_input", ".input_scale", ".comfy_quant")  # what else stands beside: nothing to read
SCALED_FORMATS = {"F8_E4M3", "F8_E5M2"}
MAPPED_ANEW = 512 << 20  # bytes read


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
    _read: Counter[Path] = field(default_factory=Counter, repr=False)  # bytes, from the mapping there is

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        path = self.files[name]
        try:
            if path not in self._opened or self._read[path] >= MAPPED_ANEW:
                self._opened[path], self._read[path] = safe_open(path, framework="pt"), 0
            tensor = self._opened[path].get_tensor(name)
        except SafetensorError as error:
            raise JobError(f"{path} cannot be read: {error}; download or copy it again") from None
        part = tensor if rows is None else tensor[rows[0] : rows[1]]
        self._read[path] += part.nbytes
        return part


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

    @cached_property
    def entries(self) -> Mapping[str, Stored]:
        return {name: self.source.entries[own] for name, own in self.names.items()}

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        return self.source.read(self.names[name], rows)


@dataclass(frozen=True)
class Unscaled:
    """A source whose weights are stored with a scale of their own, as ComfyUI's scaled fp8: what is read is weight * scale in
    float32, rounded once by whoever wants fewer bits. `scales` maps a weight to the name of its scale.
    """

    source: TensorSource
    scales: Mapping[str, str]
    entries: Mapping[str, Stored]

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.source.metadata

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        tensor = self.source.read(name, rows)
        if name not in self.scales:
            return tensor
        by_row = rows if self.source.entries[self.scales[name]].num_values > 1 else None
        return tensor.float() * self.source.read(self.scales[name], by_row).float()


def open_tensors(path: Path) -> TensorSource:
    """The tensors of a file, or of a folder that diffusers wrote. JobError when it is not one that is read."""
    if path.is_dir():
        return unscaled(_open_safetensors(path, _files_of(path)))
    check_kind(path)
    if path.suffix.lower() == ".gguf":
        from .gguf_file import open_gguf  # needs a package of its own

        return open_gguf(path)
    return unscaled(_open_safetensors(path, [path]))


def with_prefix(source: TensorSource, prefix: str) -> TensorSource:
    """What stands under a prefix, without it; the source itself where the prefix is empty."""
    if not prefix:
        return source
    return Renamed(source, {name.removeprefix(prefix): name for name in source.entries if name.startswith(prefix)})


def unscaled(source: TensorSource) -> TensorSource:
    """The source itself, unless there are scales in it. JobError for quantised weights that are no scaled fp8."""
    scales = {name[: -len(end)] + ".weight": name for name in source.entries for end in SCALES if name.endswith(end)}
    hidden = {*scales.values(), *(name for name in source.entries if name.endswith(MARKS))}
    if not hidden:
        return source
    entries = {name: entry for name, entry in source.entries.items() if name not in hidden}
    for weight, scale in scales.items():
        stored, shape = entries.get(weight), source.entries[scale].shape
        if stored is None or stored.dtype not in SCALED_FORMATS or not (prod(shape) == 1 or shape == (stored.shape[0], 1)):
            raise JobError(
                f"{source.path} holds weights quantised in a way that is not read here (of such files only scaled fp8 is); "
                "take the bf16 or fp8 file and choose base_model_precision instead"
            )
    return Unscaled(source, scales, entries)


def _open_safetensors(path: Path, files: list[Path]) -> SafetensorsSource:
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


def _files_of(folder: Path) -> list[Path]:
    """The safetensors files that make up the model of a folder: those that its index names, else its only one.

    Beside them there may be variants of the same model (`.fp16.`), which are left alone.
    """
    indices = sorted(folder.glob(f"*{INDEX_SUFFIX}"), key=lambda path: (len(path.name), path.name))
    if indices:
        files = [folder / name for name in _named_files(indices[0])]
    else:
        files = sorted(folder.glob("*.safetensors"))
        usual = [file for file in files if file.name in USUAL_NAMES]
        files = usual or files
    missing = [file.name for file in files if not file.exists()]
    if missing or not files:
        pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
        instead = f" (it has {pickles[0]}, a pickle, which is not opened because it can run code)" if pickles else ""
        raise JobError(f"{folder} lacks {', '.join(missing) or 'a .safetensors file'}{instead}; download or copy it again")
    if len(files) > 1 and not indices:
        raise JobError(
            f"{folder} holds {len(files)} models ({', '.join(file.name for file in files[:3])}); name one of the files"
        )
    return files


def _named_files(index: Path) -> list[str]:
    """The files that an index names; they lie beside it, whatever it says."""
    try:
        named = sorted(set(map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise JobError(f"{index} is no index of a model; download or copy it again") from None
    if outside := [name for name in named if not name.endswith(".safetensors") or Path(name).name != name]:
        raise JobError(f"{index} names the file {outside[0]!r}, which does not lie beside it; download or copy it again")
    return named
