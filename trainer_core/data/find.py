"""Walking a folder: which files of a kind lie below it, in one pass that gives names and stamps together.

People's folders hold links in circles, folders that may not be read, pipes, and names that are no text. None of that stops
the walk: each folder is read once, under its own place before that of a link to it, and what cannot be taken is named with
the reason. Nothing is opened, nothing written. Needs nothing of this package, so that everything may use it.
"""

import errno
import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

Stamp = tuple[int, int, int]  # bytes, modified and changed in nanoseconds: another stamp, another content
FolderIdentity = tuple[int, int] | str


class Found(NamedTuple):
    """A regular file: its path as the folder was named, that folder's absolute path, and the path below it, with slashes.

    A hundred thousand of them are walked: a Path, which takes longer to make than the look at the file, is made when asked for.
    """

    file: str
    root: str
    name: str
    stamp: Stamp

    @property
    def path(self) -> Path:
        return Path(self.file)

    @property
    def place(self) -> str:
        """The absolute path, the same however the folder was named."""
        return f"{self.root}/{self.name}"


class LeftOut(NamedTuple):
    """Something that has the name of a wanted file, or may hold some, and cannot be taken."""

    path: Path
    reason: str


class Walk(NamedTuple):
    """Both in the order of their paths below the folder."""

    files: list[Found]
    left_out: list[LeftOut]


def find_files(folder: Path, suffixes: Iterable[str], without: Iterable[Path] = ()) -> Walk:
    """Files with one of these suffixes (lower case, with the dot) below the folder, hidden ones and those `without` not.

    Links are followed, but for those to a folder that is read anyway or that holds this one.
    """
    walker = _Walker(os.path.abspath(folder), frozenset(suffixes))
    walker.passed_over = {_identity(os.fspath(path)) for path in without if path.is_dir()}
    walker.known = {_identity(os.fspath(parent)) for parent in Path(os.path.realpath(folder)).parents}
    walker.read(os.fspath(folder), "")
    while walker.waiting or walker.links:
        walker.read_next()
    walker.files.sort(key=lambda file: file.name)
    walker.left_out.sort(key=lambda entry: entry.path.as_posix())
    return Walk(walker.files, walker.left_out)


def kind_of(mode: int) -> str | None:
    """What something that is no regular file is, in words; None for a regular file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "is not a file")


def words_of(error: OSError) -> str:
    """Why the system refuses, in words for the user."""
    return _REFUSALS.get(error.errno, error.strerror or type(error).__name__)


def as_text(name: str) -> str:
    """A name in which what is no text, as old disks have it, is replaced, so that it can be a caption."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def subset(files: Collection[Found], most: int, seed: str) -> list[Found]:
    """So many of the files, in their order, drawn by their names: more files later change at most as many of the draw."""
    key = blake2b(seed.encode("utf-8", "surrogatepass"), digest_size=32).digest()

    def draw(file: Found) -> bytes:
        return blake2b(file.name.encode("utf-8", "surrogatepass"), key=key, digest_size=16).digest()

    drawn = {file.name for file in sorted(files, key=draw)[:most]}
    return [file for file in files if file.name in drawn]


@dataclass
class _Walker:
    """The state of one walk: folders by path and name below the root, links to folders last, and what was found so far."""

    root: str
    suffixes: frozenset[str]
    known: set[FolderIdentity] = field(default_factory=set)
    passed_over: set[FolderIdentity] = field(default_factory=set)
    waiting: list[tuple[str, str]] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    files: list[Found] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def read_next(self) -> None:
        """The next folder, unless it was read already."""
        linked = not self.waiting
        path, name = self.links.pop(self.links.index(min(self.links))) if linked else self.waiting.pop()
        try:
            identity = _identity(path)
        except OSError as error:
            self.leave_out(path, f"cannot be read as a folder: it {words_of(error)}")
            return
        if identity in self.passed_over:
            return
        if identity not in self.known:
            self.read(path, name)
        elif linked:
            self.leave_out(path, "leads to a folder that is read already, or that holds this one")

    def read(self, path: str, name: str) -> None:
        """What a folder holds, hidden things not."""
        try:
            self.known.add(_identity(path))
            with os.scandir(path) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(".")]
        except OSError as error:
            self.leave_out(path, f"cannot be read as a folder: it {words_of(error)}")
            return
        for entry in entries:
            self.take(entry, f"{name}/{entry.name}" if name else entry.name)

    def take(self, entry: os.DirEntry, name: str) -> None:
        """Put an entry where it belongs."""
        _, dot, suffix = entry.name.rpartition(".")
        wanted = bool(dot) and f".{suffix.rstrip().lower()}" in self.suffixes
        try:
            if entry.is_dir():
                linked = entry.is_symlink()
                (self.links if linked else self.waiting).append((entry.path, name))
                if wanted and not linked:
                    self.leave_out(entry.path, "is a folder, not a file")
            elif wanted:
                told = entry.stat()
                if other := kind_of(told.st_mode):
                    self.leave_out(entry.path, other)
                else:
                    stamp = told.st_size, told.st_mtime_ns, told.st_ctime_ns
                    self.files.append(Found(entry.path, self.root, name, stamp))
        except OSError as error:
            if wanted:
                self.leave_out(entry.path, words_of(error))

    def leave_out(self, path: str, reason: str) -> None:
        self.left_out.append(LeftOut(Path(path), reason))


def _identity(path: str) -> FolderIdentity:
    """The same for every way to a folder."""
    told = os.stat(path)
    return (told.st_dev, told.st_ino) if told.st_ino else os.path.normcase(os.path.realpath(path))


_KINDS = {
    stat.S_IFIFO: "is a pipe, not a file",
    stat.S_IFSOCK: "is a socket, not a file",
    stat.S_IFCHR: "is a device, not a file",
    stat.S_IFBLK: "is a device, not a file",
    stat.S_IFDIR: "is a folder, not a file",
}
_REFUSALS = {
    errno.ENOENT: "is a link to a file that is not there",
    errno.ENOTDIR: "is a link to a file that is not there",
    errno.EISDIR: "is a folder, not a file",
    errno.ELOOP: "is a link that leads back to itself",
    errno.EACCES: "may not be read; give yourself the permission",
    errno.EPERM: "may not be read; give yourself the permission",
    errno.ENAMETOOLONG: "has too long a path",
}
