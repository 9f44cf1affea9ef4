"""What the head of a GGUF file claims, held against the file before the package `gguf` reads it.

That package makes some objects for each element of an array, also for those that lie behind the end of the file: 655 bytes
that claim an array of 2^53 numbers would take all memory. So the head is walked through here first, without keeping anything.
"""

import struct
from pathlib import Path
from typing import BinaryIO

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by GGUF's number of its type
STRING, ARRAY = 8, 9
MOST_ELEMENTS = 1 << 21  # of all arrays together: twice what the largest tokenizers have
MOST_DEPTH = 4  # arrays in arrays


class _Head:
    """A file that is walked through; ValueError where a step leads behind its end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.elements, self.order = file, size, 0, "<"

    def number(self, kind: str) -> int:
        data = self.file.read(struct.calcsize(kind))
        if len(data) < struct.calcsize(kind):
            raise ValueError("it ends within its head")
        return struct.unpack(self.order + kind, data)[0]

    def skip(self, length: int) -> None:
        if length > self.size - self.file.tell():
            raise ValueError("a value of its head reaches behind its end")
        self.file.seek(length, 1)

    def value(self, kind: int, depth: int = 0) -> None:
        if kind == STRING:
            self.skip(self.number("Q"))
        elif kind == ARRAY:
            self.array(depth)
        elif kind in SIZES:
            self.skip(SIZES[kind])
        else:
            raise ValueError(f"its head has a value of the unknown type {kind}")

    def array(self, depth: int) -> None:
        kind, count = self.number("I"), self.number("Q")
        self.elements += count
        if self.elements > MOST_ELEMENTS or depth == MOST_DEPTH:
            raise ValueError(f"its head has arrays of more than {MOST_ELEMENTS} values, or deeper than {MOST_DEPTH}")
        if kind in SIZES:
            return self.skip(SIZES[kind] * count)
        for _ in range(count):
            self.value(kind, depth + 1)


def check_head(path: Path) -> None:
    """ValueError where the values of the head do not lie in the file, or are more than can be read."""
    with path.open("rb") as file:
        head = _Head(file, path.stat().st_size)
        head.skip(4)  # the name of the format, which the package looks at, as at the version
        if head.number("I") & 0xFFFF == 0:
            head.order = ">"
        head.number("Q")  # tensors
        for _ in range(head.number("Q")):
            head.value(STRING)
            head.value(head.number("I"))
