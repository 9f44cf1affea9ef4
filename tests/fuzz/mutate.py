"""Spoilt copies of good files: bytes flipped, cut, doubled and replaced, and JSON with odd values in odd places.

All of it follows from the random numbers that it is given, so a seed repeats a failure.
"""

import copy
import json
import random
import struct
from typing import Any

BRACKETS = 20_000  # deeper than Python's parser goes
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 1 << 31, 1 << 63, -(1 << 70), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", " ", "\0", "..", "~", "~nobody", "/", "CON", "//server/share", "a:b", "\ud800", "x" * 5000, "é\u202e", "0", "true"),
    *([], {}, [[]], [0], [None], {"": None}, {"a": {"b": []}}, [0] * 500),
)
ODD_BYTES = (
    *(b"\0", b"\xff" * 8, b"{", b"}", b"[" * BRACKETS, b'"', b"\\", b",", b":", b"null", b"NaN", b"-Infinity", b"1e999"),
    *(b"9" * 5000, b"\xef\xbb\xbf", b"\xff\xfe", b"\r\n", b"\t", b";", b"|", b'""', b"__wild__", b"<token>", b"--", b"$HOME"),
)
NUMBERS = (0, 1, 7, 255, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def spoilt(seed: bytes, other: bytes, draw: random.Random) -> bytes:
    """One to five things done to the bytes of a good file; `other` is one that pieces may come from."""
    data = _spoilt_json(seed, draw) if draw.random() < 0.5 else seed
    for _ in range(draw.randrange(0 if data is not seed else 1, 5)):
        data = draw.choice(_ON_BYTES)(data, other, draw)
    return data


def _spoilt_json(seed: bytes, draw: random.Random) -> bytes:
    """The same with something else at one to three of its places; the seed itself where it is no JSON, or too deep."""
    try:
        value = json.loads(seed)
    except (ValueError, RecursionError):
        return seed
    for _ in range(draw.randrange(1, 4)):
        value = _changed(value, draw)
    return json.dumps(value).encode()


def _changed(value: Any, draw: random.Random) -> Any:
    """The value with another one somewhere in it, nearer the leaves more often."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return copy.deepcopy(draw.choice(ODD_VALUES))
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    what = draw.random()
    if what < 0.1:
        del value[key]
    elif what < 0.2 and isinstance(value, dict):
        value[draw.choice([key.upper(), key + "_", "", "__metadata__", "\0"])] = value.pop(key)
    elif what < 0.25 and isinstance(value, list):
        value.append(copy.deepcopy(value[key]))
    else:
        value[key] = _changed(value[key], draw)
    return value


def _flip(data: bytes, other: bytes, draw: random.Random) -> bytes:
    spoilt_data = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8)) if data else 0):
        spoilt_data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(spoilt_data)


def _cut(data: bytes, other: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _insert(data: bytes, other: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice(ODD_BYTES) + data[at:]


def _number(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """A whole number of 4 or 8 bytes where there were others; at the beginning of a file more often."""
    width = draw.choice("IQ")
    number = struct.pack(f"<{width}", draw.choice(NUMBERS) % (1 << (32 if width == "I" else 64)))
    at = draw.randrange(draw.choice((64, len(data) + 1)))
    return data[:at] + number + data[at + len(number) :]


def _move(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """A piece of a file, this or another, in place of a piece of this one."""
    source = draw.choice((data, other))
    first, length = draw.randrange(len(source) + 1), draw.choice((1, 4, 16, 200))
    at, gone = draw.randrange(len(data) + 1), draw.choice((0, 1, 4, 16, 200))
    return data[:at] + source[first : first + length] + data[at + gone :]


_ON_BYTES = (_flip, _cut, _insert, _number, _move)
