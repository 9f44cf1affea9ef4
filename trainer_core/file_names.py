"""Names that strangers give to files and folders: what is wrong with one, and one like it that every system takes.

A name that something is written under must be good on every system (`problem_of`); a path that is only read must be one that
this system does not take for something else than a file (`problem_of_path`).

Windows reserves names and characters that Linux does not, and a shared graph or archive may come from either; so what one of
them would refuse or change is refused or changed everywhere.
"""

import os
import re
import unicodedata
from pathlib import Path, PurePath

from .errors import JobError

LONGEST = 120  # characters
LONGEST_PATH, LONGEST_PART = 4096, 255  # bytes of a path that is read, and of each of its parts
MOST_BYTES = 200  # most file systems take 255; there is room for a number and a suffix
_RESERVED = set('<>:"/\\|?*')
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])( *\..*)?", re.IGNORECASE)


def is_device(name: str) -> bool:
    """Whether Windows takes it for a device: CON, nul.txt, COM1, also before a dot or with blanks behind."""
    return _DEVICE.fullmatch(name) is not None


def problem_of(name: str) -> str:
    """What is wrong with a name of one file or folder, in words; empty where nothing is."""
    if not name:
        return "is empty"
    if len(name) > LONGEST or len(name.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        return "is too long"
    if set(name) & _RESERVED or not name.isprintable():
        return "has characters that no file name may have"
    if name[0] in " ." or name[-1] in " .":
        return "begins or ends with a dot or a blank"
    if is_device(name):
        return "is the name of a device on Windows"
    return ""


def problem_of_path(path: PurePath, *, on_windows: bool = os.name == "nt") -> str:
    """What is wrong with a path that is to be read, in words; empty where nothing is. Does not look at the disk.

    Windows takes CON for the console in every folder, and what follows a colon for a stream that no listing shows.
    """
    parts = path.parts[1:] if path.anchor else path.parts
    sizes = [len(part.encode("utf-8", "surrogatepass")) for part in parts]
    if sum(sizes) + len(sizes) > LONGEST_PATH or max(sizes, default=0) > LONGEST_PART:
        return "is too long to be a path"
    if any(unicodedata.category(character) == "Cc" for character in str(path)):
        return "has control characters in it"
    if on_windows and any(is_device(part.rstrip(" .")) for part in parts):
        return "names a device of Windows"
    if on_windows and any(":" in part for part in parts):
        return "names a stream within a file"
    return ""


def expanded(text: str) -> Path:
    """The path that somebody typed in, ~ as their home; JobError where ~NAME is nobody's."""
    try:
        return Path(text.strip()).expanduser()
    except RuntimeError:
        raise JobError(f"{text[:200]!r} begins with the home of nobody who is known here; write the path out") from None


def cleaned(name: str, otherwise: str) -> str:
    """A name like this one with nothing wrong; `otherwise` where nothing is left of it."""
    name = unicodedata.normalize("NFC", name)
    kept = "".join("_" if character in _RESERVED or not character.isprintable() else character for character in name)
    kept = kept.strip(" .")[:LONGEST]
    while len(kept.encode()) > MOST_BYTES:
        kept = kept[:-1]
    kept = kept.strip(" .")
    if is_device(kept):
        kept = f"_{kept}"
    return kept or otherwise
