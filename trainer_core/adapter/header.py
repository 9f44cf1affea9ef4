"""The header of an adapter's file: its metadata read, replaced, and kept to a size that model libraries read. No torch."""

import json
import logging
import struct
from collections.abc import Mapping
from typing import Any

MOST_HEADER = 1 << 20  # bytes; ComfyUI answers for no larger one (/view_metadata)
SHED_FIRST = ("prompt", "workflow", "modelspec.thumbnail")  # the graph alone brings the canvas back, without its API form

log = logging.getLogger(__name__)


def metadata_of(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file."""
    return _entries(data).get("__metadata__", {})


def with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """The same safetensors file with this metadata, its header in alphabetical order: the library's own order differs from call
    to call. Entries that would make the header larger than model libraries read are left out, with a warning."""
    entries, kept = _entries(data), dict(metadata)
    header = _header(entries, kept)
    for name in SHED_FIRST:
        if len(header) > MOST_HEADER and name in kept:
            log.warning("the LoRA's header would be larger than model libraries read, so %s is left out of it", name)
            del kept[name]
            header = _header(entries, kept)
    return b"".join((struct.pack("<Q", len(header)), header, memoryview(data)[8 + header_length(data) :]))  # one copy, not two


def header_length(data: bytes) -> int:
    """In bytes; the tensors begin eight bytes after so many."""
    return struct.unpack("<Q", data[:8])[0]


def _entries(data: bytes) -> dict[str, Any]:
    return json.loads(data[8 : 8 + header_length(data)])


def _header(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    whole = {**entries, "__metadata__": metadata}
    header = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return header + b" " * (-len(header) % 8)
