"""Names that strangers give to files and folders: what is wrong with one, and one like it that every system takes.

Windows reserves names and characters that Linux does not, and a shared graph or archive may come from either; so what one of
them would refuse or change is refused or changed everywhere.
"""

import re
import unicodedata

LONGEST = 120  # characters
MOST_BYTES = 200  # most file systems take 255; there is room for a number and a suffix
_RESERVED = set('<>:"/\\|?*')
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


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
    if _DEVICE.fullmatch(name):
        return "is the name of a device on Windows"
    return ""


def cleaned(name: str, otherwise: str) -> str:
    """A name like this one with nothing wrong; `otherwise` where nothing is left of it."""
    name = unicodedata.normalize("NFC", name)
    kept = "".join("_" if character in _RESERVED or not character.isprintable() else character for character in name)
    kept = kept.strip(" .")[:LONGEST]
    while len(kept.encode()) > MOST_BYTES:
        kept = kept[:-1]
    kept = kept.strip(" .")
    if _DEVICE.fullmatch(kept):
        kept = f"_{kept}"
    return kept or otherwise
