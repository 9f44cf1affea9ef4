"""Files that appear whole or not at all, and JSON that knows its own digest.

A file is written under a temporary name, flushed, and renamed. What a later start believes and nothing else could contradict is
sealed: its last entry is the SHA-256 of the rest, so that a bit that a disk has turned is noticed. Needs no torch.
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import JobError
from .half_written import claim

SEAL = "sha256"


class Damaged(JobError):
    """A file does not hold what was written into it."""


def write_atomically(path: Path, data: bytes) -> None:
    """The file appears whole or not at all, also when the power fails. On a full disk its beginning is taken away again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            claim(file)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not name the file
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, _as_text(value))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """As JSON, with a digest of all of it as its last entry."""
    write_json(path, value | {SEAL: hashlib.sha256(_as_text(value)).hexdigest()})


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` has written; Damaged where the file is anything else, OSError where it cannot be read. One without a
    digest is of an earlier version."""
    try:
        value = read_json(path)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged ({error})") from None
    if not isinstance(value, dict):
        raise Damaged(f"{path} is damaged: it is no table")
    seal = value.pop(SEAL, None)
    if seal is not None and seal != hashlib.sha256(_as_text(value)).hexdigest():
        raise Damaged(f"{path} is damaged: its digest is not that of what it holds")
    return value


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes; empty where there is no such file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _as_text(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
