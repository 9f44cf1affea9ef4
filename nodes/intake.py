"""Pictures and captions that the page sends, one by one or in an archive, made a new folder in ComfyUI's input folder.

What comes in may be anything: names that lead elsewhere, archives that unfold to terabytes, files that only say that they are
pictures. All of it lands in a hidden folder first and is counted while it comes; the dataset appears whole or not at all.
"""

import errno
import os
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..trainer_core.file_names import cleaned
from ..trainer_core.run_dir import PICTURE_SUFFIXES
from .http_requests import Refusal

MOST_FILES = 20_000
MOST_BYTES = 4 << 30  # of all files together, an archive and what is in it counted apart
LARGEST_PICTURE, LARGEST_CAPTION = 1 << 28, 1 << 20
MOST_FOLDERS = 4
MOST_NAMED = 500  # files that the answer says are left out
CHUNK = 1 << 18
CAPTIONS, ARCHIVE = (".txt", ".caption"), ".zip"
UNPACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may ask for gigabytes of memory
DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError, RuntimeError, OverflowError)
END_OF_ARCHIVE, LARGE_ARCHIVE, END_OF_LARGE_ARCHIVE = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
LONGEST_END = (1 << 16) + 22 + 20 + 56  # an archive's comment, and the records before it
BYTES_AN_ENTRY = 46 + 300  # of an archive's list: more than the names of pictures need
HEAD = 32
_settling = threading.Lock()


class Intake:
    """A dataset on its way in: where its files are, what was left out and why, and how much has come so far."""

    def __init__(self, staging: Path):
        self._root = staging / "files"
        self._root.mkdir()
        self._archives = staging
        self._names: set[str] = set()
        self._bytes = 0
        self._files = 0
        self.left_out: list[dict[str, str]] = []
        self.pictures = 0

    def open(self, name: str) -> "Incoming | None":
        """Where to write the file of that name; None where it is left out. Refusal once there are too many files."""
        self._files += 1
        if self._files > MOST_FILES:
            raise Refusal(413, f"these are more than {MOST_FILES} files; bring them in as several datasets")
        path = self._place(name)
        return None if path is None else Incoming(self, name, path)

    def archive(self) -> "Incoming":
        """Where to write an archive."""
        return Incoming(self, "", self._archives / f"{self._files}{ARCHIVE}")

    def count(self, number: int) -> None:
        """So many bytes have come; Refusal once they are too many."""
        self._bytes += number
        if self._bytes > MOST_BYTES:
            raise Refusal(413, f"this is more than {MOST_BYTES >> 30} GiB; bring it in as several datasets")

    def leave_out(self, name: str, reason: str) -> None:
        if len(self.left_out) < MOST_NAMED:
            self.left_out.append({"file": name, "reason": reason})

    def unpack(self, path: Path) -> None:
        """Everything in an archive that is wanted, as if it had come one by one; the archive is gone then."""
        try:
            check_list(path)
            with _sound_places(), zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    if not entry.filename.endswith("/"):  # a folder; is_dir() stumbles over an empty name
                        self._unpack(archive, entry)
        except DAMAGED:
            raise Refusal(400, "the archive is damaged, or no zip file") from None
        path.unlink()

    def settle(self, folder: Path, name: str) -> str:
        """Move what has come to a folder of that name, numbered where it is taken; the name. Refusal where no picture came."""
        if not self.pictures:
            why = "; ".join(f"{entry['file']} {entry['reason']}" for entry in self.left_out[:1])
            raise Refusal(400, f"there was no picture among the files{': ' * bool(why)}{why}")
        source = self._root
        while len(inside := list(source.iterdir())) == 1 and inside[0].is_dir():  # an archive often holds one folder
            source = inside[0]
        with _settling:
            number, chosen = 1, name
            while (folder / chosen).exists():
                number += 1
                chosen = f"{name} {number}"
            os.replace(source, folder / chosen)
        return chosen

    def _unpack(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            self.leave_out(entry.filename, "is a link or something else that is no file")
        elif entry.flag_bits & 1 or entry.compress_type not in UNPACKED:
            self.leave_out(entry.filename, "is packed with a password or in an unusual way")
        elif incoming := self.open(entry.filename):
            try:
                with _sound_places(), archive.open(entry) as packed, incoming:
                    while chunk := packed.read(CHUNK):
                        incoming.write(chunk)
            except DAMAGED:
                incoming.discard("is damaged in the archive")

    def _place(self, name: str) -> Path | None:
        """Where below the root a file of this name goes; None, with the reason noted, where it is not wanted."""
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        reason = ""
        if name[:1] in ("/", "\\") or ".." in parts or name[1:2] == ":":
            reason = "has a path that leads out of the folder"
        elif not parts or any(part.startswith(".") for part in parts):
            reason = "is a hidden file"
        elif len(parts) > MOST_FOLDERS + 1:
            reason = "lies too many folders deep"
        elif Path(parts[-1]).suffix.lower() not in (*PICTURE_SUFFIXES, *CAPTIONS):
            reason = "is neither a picture nor a caption (.txt)"
        *folders, file = parts or ["_"]
        stem, dot, suffix = file.rpartition(".")
        place = "/".join([*(cleaned(part, "_") for part in folders), f"{cleaned(stem, '_')}{dot}{suffix}"])
        if not reason and place.casefold() in self._names:
            reason = "has the name of another file"
        if reason:
            self.leave_out(name[-200:], reason)
            return None
        self._names.add(place.casefold())
        return self._root / place


class Incoming:
    """A file that is being written; kept at the end if it is what its name says."""

    def __init__(self, intake: Intake, name: str, path: Path):
        self._intake, self._name, self.path = intake, name, path
        self._is_archive = path.suffix == ARCHIVE
        self._most = MOST_BYTES if self._is_archive else LARGEST_CAPTION if path.suffix.lower() in CAPTIONS else LARGEST_PICTURE
        self._written, self._file = 0, None

    def __enter__(self) -> "Incoming":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO | None = self.path.open("xb")
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        assert self._file is not None
        self._file.close()
        if kind is None and not self._is_archive:
            self._judge()

    def write(self, chunk: bytes) -> None:
        """More of the file. Of one that is too large the rest is counted, but not kept."""
        assert self._file is not None
        self._intake.count(len(chunk))
        self._written += len(chunk)
        if self._written <= self._most:
            self._file.write(chunk)

    def discard(self, reason: str) -> None:
        self.path.unlink(missing_ok=True)
        self._intake.leave_out(self._name, reason)

    def _judge(self) -> None:
        if self._written > self._most:
            self.discard(f"is larger than {self._most >> 20} MiB")
        elif self.path.suffix.lower() in CAPTIONS:
            return
        elif is_picture(self.path):
            self._intake.pictures += 1
        else:
            self.discard("is no picture, whatever its name says")


@contextmanager
def _sound_places() -> Iterator[None]:
    """An archive that names places before its own beginning is damaged, which zipfile leaves to the system to say."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise zipfile.BadZipFile from None


def is_picture(path: Path) -> bool:
    """Whether the file begins as a picture of a known format does; whether it is whole, DatasetBucket will see."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    return any(head[place : place + len(mark)] == mark for place, mark in PICTURE_MARKS)


def check_list(path: Path) -> None:
    """Refusal where an archive's list of files is so long that reading it would take all memory; ValueError for no archive.

    zipfile reads the list whole, whatever it says, and makes an object of each entry.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LONGEST_END))
        end = file.read()
    if END_OF_ARCHIVE not in end or (LARGE_ARCHIVE in end and END_OF_LARGE_ARCHIVE not in end):
        raise ValueError("no end of an archive")
    if max(_list_sizes(end), default=0) > MOST_FILES * BYTES_AN_ENTRY:
        raise Refusal(413, f"the archive holds more than {MOST_FILES} files; bring it in as several datasets")


def _list_sizes(end: bytes) -> Iterator[int]:
    """The size in bytes of the list, by every record in an archive's last bytes that may be meant to tell it."""
    for mark, place, form in ((END_OF_ARCHIVE, 12, "<L"), (END_OF_LARGE_ARCHIVE, 40, "<Q")):
        found = end.find(mark)
        while found >= 0:
            told = end[found + place : found + place + struct.calcsize(form)]
            if len(told) == struct.calcsize(form) and told != b"\xff\xff\xff\xff":
                yield struct.unpack(form, told)[0]
            found = end.find(mark, found + 1)


PICTURE_MARKS = (
    (0, b"\x89PNG\r\n\x1a\n"),
    (0, b"\xff\xd8\xff"),  # JPEG
    (8, b"WEBP"),
    (0, b"BM"),
    (0, b"II*\x00"),  # TIFF
    (0, b"MM\x00*"),
    (0, b"GIF8"),
    (4, b"ftypavif"),
    (4, b"ftypavis"),
    (4, b"ftypmif1"),
    (0, b"\xff\x0a"),  # JPEG XL
    (0, b"\x00\x00\x00\x0cJXL \r\n\x87\n"),
)
