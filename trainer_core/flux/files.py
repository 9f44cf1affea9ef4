"""The model files of a job: which there are, that they can be read, and what identifies them.

Of files, safetensors are read here and GGUF in `gguf_file.py`; a pickle is refused by its name, for opening one runs code.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import pico
from ..errors import JobError
from ..safetensors_header import MOST_HEADER, check_header, parse_header

WHOLE_FILE_BYTES = 64 << 20
SAMPLES, SAMPLE_BYTES = 64, 64 << 10
PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}
READ = (".safetensors", ".gguf")
# how files begin that are something else under a model's name
BEGINNINGS = (
    (b"<", "a web page, so the download was not the model: log in there, accept the licence, and download again"),
    (b"version https://git-lfs", "a git-lfs pointer, not the model itself; run `git lfs pull`, or download the file"),
    (b"GGUF", "a GGUF file under another name; rename it to .gguf"),
    (b"PK\x03\x04", "a pickle under another name, and opening one can run code; get the model as .safetensors"),
    (b"\x80\x02}", "a pickle under another name, and opening one can run code; get the model as .safetensors"),
    (b'{"', "JSON text, not a model; download the model's own file"),
)


@dataclass(frozen=True)
class ModelFiles:
    """Where everything is that a FLUX consists of: files, or folders as diffusers writes them. Several may be one file, a
    whole checkpoint: `dialects.py` finds each part in it. Tokenizers are a folder or a tokenizer.json.
    """

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


def check_kind(path: Path) -> None:
    """JobError when the file's name or its first bytes say that it is nothing that is read here."""
    if path.suffix.lower() in PICKLES:
        raise JobError(f"{path} is a pickle, which can run code when it is opened; get the model as .safetensors")
    if path.suffix.lower() not in READ:
        raise JobError(f"{path} is neither .safetensors nor .gguf; only these are read, because other formats can run code")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise JobError(f"{path} is empty; download or copy it again")
    looks_right = start.startswith(b"GGUF") if path.suffix.lower() == ".gguf" else start[8:9] == b"{"
    for mark, meaning in BEGINNINGS:
        if not looks_right and start.lstrip().startswith(mark):
            raise JobError(f"{path} is {meaning}")


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: name -> {dtype, shape, data_offsets}, and `__metadata__`. Reads no tensor.

    JobError when the file is not safetensors, or its header's claims fit neither each other nor the file.
    """
    check_kind(path)
    if path.suffix.lower() != ".safetensors":
        raise JobError(f"{path} is not a .safetensors file, and here only that format is read")
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        size = path.stat().st_size
        if not 2 <= length <= min(size - 8, MOST_HEADER):
            raise JobError(f"{path} is not a whole safetensors file ({size:,} bytes); download or copy it again")
        text = file.read(length)
    try:
        header = parse_header(text)
        end = check_header(header)
    except ValueError as error:
        raise JobError(f"{path} is not a safetensors file: {error}; download it again") from None
    if size < 8 + length + end:
        raise JobError(f"{path} is cut off: {size:,} bytes of {8 + length + end:,}; download or copy it again")
    if size > 8 + length + end:
        raise JobError(f"{path} goes on behind its tensors: {size:,} bytes of {8 + length + end:,}; download it again")
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
    """Identifies a file's content: all of a small one; size, beginning, end and even samples of a large one. Of a folder: of
    its files, by name.
    """
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()} {fingerprint(file)}\n".encode())
        return digest.hexdigest()
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE_FILE_BYTES:
            digest.update(file.read())
        else:
            for index in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * index // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
