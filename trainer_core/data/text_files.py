"""Text as users have it: UTF-8, what Windows' Notepad and Excel write, and older Windows-1252, told apart by the bytes.

UTF-8 is tried first, because other text hardly ever passes for it; Windows-1252 comes last, because nearly everything does.
What is no text at all is an error and not a caption of odd signs. Needs no torch.
"""

import codecs
import logging
import os
from pathlib import Path

from ..errors import JobError

MAX_NAMED = 10
AT_ONCE = 1 << 16  # bytes
BYTE_ORDER_MARK = "\ufeff"  # what Windows writes before UTF-8
READING = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # which Windows and Unix lack in turn

log = logging.getLogger(__name__)


class TextReader:
    """Reads the text files of one dataset; `kind` is what they are to the user. Names the first few that are not UTF-8."""

    def __init__(self, kind: str):
        self._kind = kind
        self._num_guessed = 0

    def read(self, path: str | Path) -> str:
        """The file's text; OSError where it cannot be read, JobError where it is no text."""
        handle = os.open(path, READING)
        try:
            parts = [os.read(handle, AT_ONCE)]
            while len(parts[-1]) == AT_ONCE:
                parts.append(os.read(handle, AT_ONCE))
        finally:
            os.close(handle)
        return self.decode(b"".join(parts), path)

    def decode(self, data: bytes, path: str | Path) -> str:
        """UTF-8 with or without a byte order mark, UTF-16 with one, else Windows-1252 with a warning, else JobError."""
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            encoding = "utf-16"
        else:
            try:
                return self._text(data.decode().removeprefix(BYTE_ORDER_MARK), path)
            except UnicodeDecodeError:
                encoding = "cp1252"
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            found = (
                "begins as UTF-16 but does not go on so" if encoding == "utf-16" else "is neither UTF-8 nor Windows-1252 text"
            )
            byte = f"byte 0x{data[error.start]:02x} at {error.start}"
            raise JobError(f"{self._kind} {path} {found} ({byte}); save it as UTF-8") from None
        if encoding == "cp1252":
            self._warn(path)
        return self._text(text, path)

    def _text(self, text: str, path: str | Path) -> str:
        if "\0" in text:
            raise JobError(
                f"{self._kind} {path} holds zero bytes, so it is no text or UTF-16 without its mark; save it as UTF-8"
            )
        return text

    def _warn(self, path: str | Path) -> None:
        self._num_guessed += 1
        if self._num_guessed <= MAX_NAMED:
            log.warning("%s %s is not UTF-8; it was read as Windows-1252", self._kind, path)
        elif self._num_guessed == MAX_NAMED + 1:
            log.warning("more %s files are not UTF-8; they are read as Windows-1252 too", self._kind)


def one_line(text: str) -> str:
    """The text with all white space between its words as single blanks."""
    return " ".join(text.split())
