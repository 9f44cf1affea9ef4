"""GGUF, the format in which FLUX is handed around quantised (Q8_0, Q4_K, ...), as a source of tensors.

The package `gguf` of the format's own makers maps the file into memory and turns quantised blocks into numbers; here one
tensor is turned at a time. GGUF counts dimensions from the other end. Quantised tensors are read as float32, without any
rounding beyond that of the file; the others as they are stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import JobError
from .gguf_header import check_head
from .tensors import Stored

PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": np.int16}  # BF16 is unknown to numpy
SHAPE_FIELD = "comfy.gguf.orig_shape."  # where ComfyUI-GGUF keeps the shape of a tensor that it had to reshape


@dataclass(frozen=True)
class GgufSource:
    """`tensors` are the reader's own records, by name; their data lies in the mapped file."""

    path: Path
    entries: Mapping[str, Stored]
    metadata: Mapping[str, str]
    tensors: Mapping[str, Any]

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        from gguf.quants import dequantize

        stored, found = self.entries[name], self.tensors[name]
        if rows is not None and not stored.shape:
            raise JobError(f"{self.path}: {name!r} is a single number and has no rows; download or copy it again")
        flat = tuple(found.data.shape[:1]) != stored.shape[:1]  # reshaped when it was written: its rows are not ours
        data = found.data if rows is None or flat else found.data[rows[0] : rows[1]]
        if stored.dtype in PLAIN:
            tensor = torch.from_numpy(np.array(data).view(PLAIN[stored.dtype]))
            tensor = tensor.view(torch.bfloat16) if stored.dtype == "BF16" else tensor
        else:
            try:
                tensor = torch.from_numpy(dequantize(data, found.tensor_type))
            except NotImplementedError:
                raise JobError(
                    f"{self.path} is quantised as {stored.dtype}, which cannot be read; choose Q8_0 or Q4_K"
                ) from None
        if not flat:
            return tensor.reshape(-1, *stored.shape[1:])
        tensor = tensor.reshape(stored.shape)
        return tensor if rows is None else tensor[rows[0] : rows[1]]


def open_gguf(path: Path) -> GgufSource:
    """JobError when the package is missing, or the file is not whole."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise JobError(f"{path} needs the package gguf: pip install gguf, with the Python that runs ComfyUI") from None
    try:
        check_head(path)
        reader = GGUFReader(path)
        _check_bounds(reader, path.stat().st_size)
        architecture = reader.get_field("general.architecture")
        kind = bytes(architecture.parts[architecture.data[0]]).decode() if architecture else ""
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise JobError(f"{path} is not a whole GGUF file ({str(error)[:120]}); download or copy it again") from None
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    entries = {
        name: Stored(_shape(reader, tensor), tensor.tensor_type.name, int(tensor.n_bytes)) for name, tensor in tensors.items()
    }
    return GgufSource(path, entries, {"general.architecture": kind}, tensors)


def _check_bounds(reader: Any, size: int) -> None:
    """ValueError where a tensor lies outside of the file or over another, is empty, or has another size than its shape."""
    end = int(reader.data_offset)
    for tensor in sorted(reader.tensors, key=lambda tensor: tensor.data_offset):
        name, start, length = tensor.name[:80], int(tensor.data_offset), int(tensor.n_bytes)
        if start < end or start + length > size or tensor.data.nbytes != length:
            raise ValueError(f"the tensor {name!r} lies over another or outside of the file")
        if not tensor.n_elements:
            raise ValueError(f"the tensor {name!r} holds nothing")
        if prod(map(int, tensor.shape)) != tensor.n_elements or prod(_shape(reader, tensor)) != tensor.n_elements:
            raise ValueError(f"the tensor {name!r} is not as large as its shape says")
        end = start + length


def _shape(reader: Any, tensor: Any) -> tuple[int, ...]:
    """As it was before GGUF, outermost first."""
    original = reader.get_field(SHAPE_FIELD + tensor.name)
    if original is not None:
        return tuple(int(original.parts[index][0]) for index in original.data)
    return tuple(int(length) for length in reversed(tensor.shape))
