"""The files in which the cache keeps its entries: safetensors with many entries each, and a checksum for each entry.

An entry is a few tensors under one name; in its shard they are called NAME.TENSOR, and the shard's metadata holds, under NAME,
the CRC-32 of their names, formats, shapes and bytes. So a header alone tells what a shard holds, and one read of an entry
tells whether it is what was written. A shard is written once, whole, under a name that nobody else takes, and never changed.

What is read is read with plain reads, not mapped: safetensors maps a file privately, which Windows counts against the memory
that there is, byte by byte, for as long as the file is open. Needs no torch.
"""

import struct
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from io import BufferedIOBase, RawIOBase
from pathlib import Path
from sys import intern
from typing import NamedTuple

from ..safetensors_header import METADATA, MOST_HEADER, check_header, parse_header

PATTERN = "shard-*.safetensors"
CHUNK = 1 << 20

Read = Callable[[int, int], bytes | bytearray]  # from this byte of a file on, so many or fewer


class Place(NamedTuple):
    """A tensor in its shard: its name within the entry, format and shape as safetensors has them, first byte and the one after
    the last."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Entry(NamedTuple):
    """Where an entry is. `shard` is the file's name; `checksum` is -1 where the metadata has none."""

    shard: str
    checksum: int
    places: tuple[Place, ...]  # by name


class DamagedShard(ValueError):
    """The header cannot be read, so nothing of the shard can."""


def new_name() -> str:
    """A file name that no other process takes; later ones sort behind earlier ones."""
    return f"shard-{time.time_ns():020d}-{uuid.uuid4().hex[:12]}.safetensors"


def read_shard(path: Path) -> dict[str, Entry]:
    """The entries of a shard by name, from its header alone. DamagedShard when that cannot be read."""
    with path.open("rb") as file:
        header, data = _read_header(file)
    places: dict[str, list[Place]] = {}
    try:
        checksums = header.pop(METADATA, {})
        for key, told in header.items():
            name, _, tensor = key.partition(".")
            start, end = told["data_offsets"]
            place = Place(intern(tensor), intern(told["dtype"]), tuple(told["shape"]), data + start, data + end)
            places.setdefault(name, []).append(place)
        return {
            name: Entry(path.name, int(checksums.get(name, "-1"), 16), tuple(sorted(found))) for name, found in places.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedShard(f"its header is garbled ({error})") from None


def checksum(tensors: Iterator[tuple[str, str, tuple[int, ...], Iterator[bytes]]]) -> int:
    """CRC-32 of an entry: name, format, shape and bytes, in pieces, of each of its tensors by name."""
    value = 0
    for name, dtype, shape, pieces in tensors:
        value = zlib.crc32(f"{name} {dtype} {shape}".encode(), value)
        for piece in pieces:
            value = zlib.crc32(piece, value)
    return value


def is_intact(entry: Entry, read: Read) -> bool:
    """Whether the bytes on disk are those that were written; one read of them all."""

    def pieces(place: Place) -> Iterator[bytes]:
        for start in range(place.start, place.end, CHUNK):
            wanted = min(CHUNK, place.end - start)
            data = read(start, wanted)
            if len(data) < wanted:
                raise EOFError(f"{entry.shard} ends within the entry")
            yield data

    try:
        return entry.checksum == checksum((p.name, p.dtype, p.shape, pieces(p)) for p in entry.places)
    except (EOFError, OSError):  # or the disk cannot give these bytes back
        return False


def _read_header(file: BufferedIOBase | RawIOBase) -> tuple[dict, int]:
    """The JSON of the header, and the byte at which the tensors begin."""
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= MOST_HEADER:
        raise DamagedShard("it does not begin as a shard does")
    text = file.read(length)
    if len(text) < length:
        raise DamagedShard("it breaks off within its header")
    try:
        header = parse_header(text)
        check_header(header)
    except ValueError as error:
        raise DamagedShard(str(error)) from None
    return header, 8 + length
