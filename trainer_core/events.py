"""What happens in a run, one JSON object a line, appended to `events.jsonl` in the run folder.

Events are for machines: ComfyUI's monitor, the progress bar and the tests read this file and nothing else, so replaying it
redraws any past run. A resumed run appends to the same file. `docs/events.md` describes each kind; the table here is the
list of the fields that each must carry, and writing an event with other fields is a bug of ours.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

EVENTS_VERSION = 1  # of what docs/events.md promises; another one where a field goes or changes its meaning

FIELDS: dict[str, frozenset[str]] = {
    "plan": frozenset({"phases", "room", "verdict"}),
    "started": frozenset({"version", "run_id", "pid", "resumed_from", "steps"}),
    "phase": frozenset({"phase", "done", "total", "per_second", "seconds_left"}),
    "warning": frozenset({"message"}),
    "dataset": frozenset({"pictures", "buckets", "rejected", "reasons"}),
    "adapter": frozenset({"modules", "parameters"}),
    "step": frozenset({"step", "steps", "loss", "learning_rate", "grad_norm", "seconds"}),
    "preview": frozenset({"step", "index", "path"}),
    "sample": frozenset({"step", "index", "prompt", "path", "compared"}),
    "score": frozenset({"step", "picture", "prompt", "clip_score", "likeness"}),
    "checkpoint": frozenset({"step", "path"}),
    "verified": frozenset({"path", "matched", "keys"}),
    "metrics": frozenset(
        {
            "step",
            "loss",
            "loss_by_sigma",
            "grad_norm",
            "learning_rate",
            "steps_per_second",
            "data_wait_share",
            "memory_gib",
            "dropped_tokens",
            "tokens",
        }
    ),
    "evaluation": frozenset({"step", "loss", "by_dataset", "best"}),
    "job_changed": frozenset({"changes", "begins_from"}),
    "paused": frozenset({"step"}),
    "continued": frozenset({"step"}),
    "stopped": frozenset({"step"}),
    "error": frozenset({"message"}),
    "done": frozenset({"step", "lora", "seconds"}),
}

PHASES = (
    "index",
    "check cache",
    "encode pictures",
    "encode captions",
    "encode masks",
    "load",
    "quantise",
    "sample",
    "evaluate",
    "compile",
    "train",
    "save",
)

log = logging.getLogger(__name__)

Event = dict[str, Any]
Listener = Callable[[Event], None]


class EventLog:
    """Appends events to a file, whole lines or nothing, and tells the listeners (a progress bar, say)."""

    def __init__(self, path: Path, *listeners: Listener):
        _cut_half_line(path)
        self._file = path.open("ab", buffering=0)
        self._listeners = listeners
        self._pace = Pace()

    def emit(self, kind: str, **fields: Any) -> None:
        assert fields.keys() == FIELDS[kind], f"event {kind!r} wants {sorted(FIELDS[kind])}, got {sorted(fields)}"
        event = {"time": round(time.time(), 3), "event": kind, **fields}
        self._append(_line(event))
        for listener in self._listeners:
            listener(event)

    def adopt(self, events: Iterable[Event]) -> None:
        """Take over what another run told; the listeners are not told, for it is no news."""
        events = list(events)
        assert all(map(is_current, events)), events
        self._append(b"".join(map(_line, events)))

    def phase(self, phase: str, done: int, total: int) -> None:
        """Progress of one of PHASES, in items."""
        assert phase in PHASES, phase
        per_second = self._pace.of(phase, done, time.monotonic())
        seconds_left = round((total - done) / per_second, 1) if per_second else None
        self.emit("phase", phase=phase, done=done, total=total, per_second=per_second, seconds_left=seconds_left)

    def close(self) -> None:
        self._file.close()

    def _append(self, data: bytes) -> None:
        start = self._file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:  # a full disk, say
            self._file.truncate(start)
            raise


def _line(event: Event) -> bytes:
    return (json.dumps(event, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def is_current(event: Event) -> bool:
    """Whether it has the fields of this version: one that an older version wrote may have others."""
    return event.keys() - {"time", "event"} == FIELDS.get(event["event"])


class Pace:
    """How fast a phase goes, from when its first new item was begun: what was done before, and loading, does not count."""

    def __init__(self) -> None:
        self._phase, self._first, self._last, self._since = "", 0, 0, 0.0

    def of(self, phase: str, done: int, now: float) -> float | None:
        """Items a second so far; None while none is done. `now` in seconds."""
        if phase != self._phase or done < self._last:
            self._phase, self._first = phase, done
        self._last = done
        if done == self._first:
            self._since = now
        passed = now - self._since
        return round((done - self._first) / passed, 3) if done > self._first and passed > 0 else None


def _cut_half_line(path: Path) -> None:
    """Take away the beginning of a line that a killed process did not finish."""
    if path.exists():
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)


class WarningEvents(logging.Handler):
    """Turns the core's logged warnings into events; those from before the event log was open wait for it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._waiting: list[str] = []
        self._events: EventLog | None = None

    def connect(self, events: EventLog) -> None:
        self._events = events
        for message in self._waiting:
            events.emit("warning", message=message)

    def emit(self, record: logging.LogRecord) -> None:
        if self._events is None:
            self._waiting.append(record.getMessage())
        else:
            self._events.emit("warning", message=record.getMessage())


class EventReader:
    """Reads the events that were appended since the last call; a half-written last line waits for its end, and what a damaged
    disk has made of a line is passed over."""

    def __init__(self, path: Path, *, from_end: bool = False):
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def new(self) -> Iterator[Event]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                try:
                    event = json.loads(line)
                except ValueError:
                    event = None
                if isinstance(event, dict) and event.get("event") in FIELDS:
                    yield event
                else:
                    log.warning("%s: a line is damaged and passed over", self._path)
