"""The model files of a job: where they are, that they can be read, and what identifies them. Only safetensors are opened."""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import pico
from ..errors import JobError
from ..specs.base import BaseModelSpec

WHOLE_FILE_BYTES = 64 << 20
SAMPLES, SAMPLE_BYTES = 64, 64 << 10


@dataclass(frozen=True)
class ModelFiles:
    """Everything that a FLUX consists of. Tokenizers are a folder or a tokenizer.json."""

    transformer: Path
    vae: Path
    clip_l: Path
    t5: Path
    clip_tokenizer: Path
    t5_tokenizer: Path


PICO_FILES = ModelFiles(
    transformer=pico.TRANSFORMER_PATH,
    vae=pico.VAE_PATH,
    clip_l=pico.CLIP_L_PATH,
    t5=pico.T5_PATH,
    clip_tokenizer=pico.TOKENIZER_PATH,
    t5_tokenizer=pico.TOKENIZER_PATH,
)


def resolve_files(base: BaseModelSpec) -> ModelFiles:
    """The files of this base; one JobError names every one that is missing."""
    if base.model_flavour == "pico":
        return PICO_FILES
    files = ModelFiles(
        **{field.name: Path(getattr(base, f"{field.name}_path").strip()).expanduser() for field in fields(ModelFiles)}
    )
    missing = [
        f"base.{field.name}_path: there is no file {getattr(files, field.name)}"
        for field in fields(ModelFiles)
        if not getattr(files, field.name).exists()
    ]
    if missing:
        raise JobError("\n".join(missing) + "\ncorrect the path, or put the file there")
    return files


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: name -> {dtype, shape, data_offsets}, and `__metadata__`. Reads no tensor.

    JobError when the file is not safetensors or is shorter than its header promises.
    """
    if path.suffix.lower() != ".safetensors":
        raise JobError(f"{path} is not a .safetensors file; only that format is read, because others can run code")
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        size = path.stat().st_size
        if not 2 <= length <= size - 8:
            raise JobError(f"{path} is not a whole safetensors file ({size:,} bytes); download or copy it again")
        try:
            header = json.loads(file.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise JobError(f"{path} is not a safetensors file: its header is not JSON; download it again") from None
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if size < 8 + length + end:
        raise JobError(f"{path} is cut off: {size:,} bytes of {8 + length + end:,}; download or copy it again")
    return header


def read_tensors(
    path: Path,
    wanted: Callable[[str], bool] = lambda name: True,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """The tensors whose name is wanted, each brought to the format and device as it is read (None: as in the file, CPU)."""
    read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).to(device, dtype) for name in file.keys() if wanted(name)}  # noqa: SIM118
    except SafetensorError as error:
        raise JobError(f"{path} cannot be read: {error}; download or copy it again") from None


def fingerprint(path: Path) -> str:
    """Identifies a file's content: all of a small one; size, beginning, end and even samples of a large one."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE_FILE_BYTES:
            digest.update(file.read())
        else:
            for index in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * index // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
