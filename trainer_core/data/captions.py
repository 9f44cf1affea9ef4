"""Captions, all read and decoded before the first step, so that a bad one is found in seconds and not in the night."""

import logging
from collections.abc import Callable
from pathlib import Path

from ..errors import JobError
from ..specs.dataset import DatasetSpec

log = logging.getLogger(__name__)


CaptionReader = Callable[[Path], tuple[str, ...]]


def caption_reader(spec: DatasetSpec, folder: Path) -> CaptionReader:
    """What gives the captions of a picture of this dataset, at least one; JobError where their source cannot be read.

    The reader raises Reject where a picture is left out for its caption, and JobError where the user must decide.
    """
    return lambda picture: (_STRATEGIES[spec.caption_strategy](picture, spec),)


def decode(data: bytes, path: Path) -> str:
    """UTF-8 with or without a byte order mark, else Windows-1252 with a warning, else JobError."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError as error:
        raise JobError(
            f"caption {path} is neither UTF-8 nor Windows-1252 text (byte 0x{data[error.start]:02x} at {error.start}); "
            "save it as UTF-8"
        ) from None
    log.warning("caption %s is not UTF-8; it was read as Windows-1252", path)
    return text


def _from_textfile(picture: Path, spec: DatasetSpec) -> str:
    path = picture.with_suffix(".txt")
    if not path.exists():
        raise JobError(
            f"picture {picture} has no caption: write {path.name} beside it, "
            "or choose caption_strategy filename or instanceprompt"
        )
    return " ".join(decode(path.read_bytes(), path).split())


def _from_filename(picture: Path, spec: DatasetSpec) -> str:
    return " ".join(picture.stem.replace("_", " ").split())


def _from_instance_prompt(picture: Path, spec: DatasetSpec) -> str:
    return spec.instance_prompt.strip()


_STRATEGIES = {
    "textfile": _from_textfile,
    "filename": _from_filename,
    "instanceprompt": _from_instance_prompt,
}
