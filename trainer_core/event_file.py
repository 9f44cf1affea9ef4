"""Reading `events.jsonl` of any run, also one that is being written: its newest events from behind, or a page of them.

Twenty thousand steps make a file of some megabytes. What a list of runs shows stands near its end, so that is where the
reading begins. Lines that are no event, as a damaged disk leaves them, are passed over; the last line may be half written
and is left for later. Light: ComfyUI's server asks it for every run that there is.
"""

import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from .events import Event

BLOCK_BYTES = 1 << 16
PATHS = ("path", "compared", "lora")  # fields of events that name a file
LONGEST_LINE = 1 << 24  # in bytes; no event is near that
PAGE_BYTES = 2 << 20
_KIND = re.compile(rb'"event": ?"(\w{1,40})"')
_HUGE = re.compile(rb"[eE]\+?\d{3}")  # a number that may be too large for a float
_KIND_WITHIN = 120  # bytes from the beginning of a line


class Page(NamedTuple):
    """Events in their order, the byte at which the next ones begin, and whether the reading began again at 0."""

    events: list[Event]
    next: int
    restarted: bool


def newest_events(path: Path, wanted: Mapping[str, Collection[str]]) -> dict[str, Event]:
    """For each name in `wanted`, the newest event whose kind is among its kinds; nothing for a name where there is none.

    Reads from the end, and no further than it must.
    """
    found: dict[str, Event] = {}
    for line in _lines_backwards(path):
        match = _KIND.search(line, 0, _KIND_WITHIN)
        kind = match[1].decode() if match else ""
        names = [name for name, kinds in wanted.items() if kind in kinds and name not in found]
        if names and (event := _parse(line)) is not None:
            found |= dict.fromkeys(names, event)
        if len(found) == len(wanted):
            break
    return found


def first_event(path: Path) -> Event | None:
    """The event that the file begins with; None where it begins with none."""
    with path.open("rb") as file:
        return _parse(file.readline(BLOCK_BYTES))


def read_page(path: Path, after: int, most: int = PAGE_BYTES) -> Page:
    """The whole lines from the byte `after` on, in about `most` bytes; from 0 on where the file is shorter than that."""
    if not path.exists():
        return Page([], 0, after > 0)
    with path.open("rb") as file:
        restarted = after > file.seek(0, os.SEEK_END)
        start = 0 if restarted else after
        file.seek(start)
        data = file.read(most)
    whole = data.rfind(b"\n") + 1
    if not whole and len(data) == most:  # a line that is longer than a page is none of ours
        whole = most
    events = [event for line in data[:whole].splitlines() if (event := _parse(line)) is not None]
    return Page(events, start + whole, restarted)


def within(event: Event, run_id: str) -> Event:
    """The event with its paths relative to the run folder, which may have been moved since; null where they lead elsewhere."""
    moved = {}
    for field in PATHS:
        if isinstance(path := event.get(field), str):
            _, found, inside = path.replace("\\", "/").rpartition(f"/{run_id}/")
            moved[field] = inside if found else None
    return event | moved


def _lines_backwards(path: Path) -> Iterator[bytes]:
    """The whole lines, the last one first; what stands behind the last line's end is left out."""
    with path.open("rb") as file:
        end, rest, is_behind_last_line = file.seek(0, os.SEEK_END), b"", True
        while end and len(rest) < LONGEST_LINE:
            start = max(0, end - BLOCK_BYTES)
            file.seek(start)
            rest, *lines = (file.read(end - start) + rest).split(b"\n")
            if lines and is_behind_last_line:
                lines.pop()
                is_behind_last_line = False
            yield from reversed(lines)
            end = start
        if not is_behind_last_line:
            yield rest


def _parse(line: bytes) -> Event | None:
    """The event of a line, or None; numbers that JSON does not have become null."""
    try:
        event = (_careful if _HUGE.search(line) else _usual).decode(line.decode())
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _null(name: str) -> None:
    """What stands for NaN and Infinity."""


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


_usual = json.JSONDecoder(parse_constant=_null)
_careful = json.JSONDecoder(parse_constant=_null, parse_float=_finite)
