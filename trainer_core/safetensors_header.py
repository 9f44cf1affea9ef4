"""The header of a safetensors file, checked before anything is done with what it says.

A header is JSON that names each tensor with its format, shape and place. A file may come from anywhere, so the claims are held
against each other and against the file: no tensor larger or smaller than its shape, none over another, no hole between two,
nothing behind the last. The library checks the same when it opens a file; here it is checked where a header alone is read, and
said in words. Needs no torch.
"""

import json
from math import prod
from typing import Any

MOST_HEADER = 100 << 20  # bytes; what the library itself takes
MOST_DIMENSIONS, LARGEST = 64, 1 << 63
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6} | {
    name: bits
    for bits, names in {
        8: "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
        16: "I16 U16 F16 BF16",
        32: "I32 U32 F32",
        64: "I64 U64 F64 C64",
    }.items()
    for name in names.split()
}
METADATA = "__metadata__"


def parse_header(text: bytes) -> dict[str, Any]:
    """The header as JSON; ValueError where it is none."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("its header is not JSON") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no table of tensors")
    return header


def check_header(header: dict[str, Any]) -> int:
    """How many bytes of tensors must follow the header; ValueError says what is wrong with its claims."""
    metadata = header.get(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no texts")
    end = 0
    for start, stop, name in sorted(_extent(name, told) for name, told in header.items() if name != METADATA):
        if start != end:
            raise ValueError(f"{_short(name)} {'lies over another tensor' if start < end else 'begins behind a hole'}")
        end = stop
    return end


def _extent(name: str, told: Any) -> tuple[int, int, str]:
    """Where a tensor begins and ends; ValueError where that is no place, or another size than its shape."""
    told = told if isinstance(told, dict) else {}
    dtype, shape, place = (told.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _sizes(shape, MOST_DIMENSIONS) or not _sizes(place, 2) or len(place) != 2:
        raise ValueError(f"what it says of {_short(name)} is garbled")
    start, end = place
    if not start <= end or (dtype in BITS and prod(shape) * BITS[dtype] != 8 * (end - start)):
        raise ValueError(f"{_short(name)} is not as large as its shape says")
    return start, end, name


def _sizes(given: Any, most: int) -> bool:
    return isinstance(given, list) and len(given) <= most and all(type(one) is int and 0 <= one < LARGEST for one in given)


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:80] + "...")
