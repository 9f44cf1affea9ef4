"""Captions, all read and decoded before the first step, so that a bad one is found in seconds and not in the night.

A source says which captions a picture has; what is done with them (wildcards, shuffled tags, trigger word, prefix) is in
`caption_variants.py`. A text file is opened and not looked for first: with a hundred thousand of them every look counts.

An empty text file is an empty caption, since somebody wrote that file: its picture is trained without words (but for the
trigger word and the prefix). An empty cell of a table is a missing caption, since tables have a cell for every picture.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ..errors import JobError
from ..specs.dataset import DatasetSpec
from .caption_tables import Table, read_table
from .caption_variants import make_forms
from .find import Found
from .sample import Reject
from .text_files import TextReader, one_line

SUFFIXES = (".txt", ".caption")  # the first that is there is taken; .caption is what kohya's scripts write
NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}

CaptionReader = Callable[[Found], tuple[str, ...]]


class Missing(Exception):
    """A picture has no caption; its text says what would give it one."""


def caption_reader(spec: DatasetSpec, folder: Path) -> CaptionReader:
    """What gives the captions of a picture of this dataset, at least one; JobError where their source cannot be read.

    The reader raises Reject where a picture is left out for its caption, and JobError where the user must decide.
    """
    source, forms = _SOURCES[spec.caption_strategy](spec, folder), make_forms(spec)

    def read(picture: Found) -> tuple[str, ...]:
        try:
            captions = source(picture)
        except Missing as mend:
            captions = _instead(picture, spec, str(mend))
        if forms is None:
            return captions
        try:
            return forms(picture.name, captions)
        except JobError as error:
            raise JobError(f"caption of {picture.file}: {error}") from None

    return read


def _instead(picture: Found, spec: DatasetSpec, mend: str) -> tuple[str, ...]:
    """What a picture without a caption gets."""
    if spec.missing_caption == "filename":
        return (name_as_caption(picture.path),)
    if spec.missing_caption == "skip":
        raise Reject(f"it has no caption ({mend})")
    raise JobError(
        f"picture {picture.file} has no caption: {mend}, or choose caption_strategy filename or instanceprompt; "
        "missing_caption 'filename' or 'skip' decides for all such pictures"
    )


def name_as_caption(picture: Path) -> str:
    """The file's name without its suffix, underscores as spaces; bytes that are no text, as old disks have them, as �."""
    name = picture.stem.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return one_line(name.replace("_", " "))


def _from_textfiles(spec: DatasetSpec, folder: Path) -> CaptionReader:
    reader = TextReader("caption")

    def read(picture: Found) -> tuple[str, ...]:
        text = _beside(picture, reader)
        if not spec.multiline_captions:
            return (one_line(text),)
        lines = [one_line(line) for line in text.splitlines()]
        return tuple(dict.fromkeys(filter(None, lines))) or ("",)

    return read


def _beside(picture: Found, reader: TextReader) -> str:
    """The text of the caption file; Missing where there is none."""
    stem = picture.file.rpartition(".")[0]  # it has one: it is a picture by its suffix
    for suffix in SUFFIXES:
        try:
            return reader.read(stem + suffix)
        except OSError as error:
            if error.errno not in NOT_THERE:
                raise Reject(f"its caption {stem + suffix} cannot be read ({error.strerror})") from None
    raise Missing(f"write {os.path.basename(stem)}{SUFFIXES[0]} beside it")


def _from_names(spec: DatasetSpec, folder: Path) -> CaptionReader:
    return lambda picture: (name_as_caption(picture.path),)


def _from_instance_prompt(spec: DatasetSpec, folder: Path) -> CaptionReader:
    captions = (spec.instance_prompt.strip(),)
    return lambda picture: captions


def _from_table(spec: DatasetSpec, folder: Path) -> CaptionReader:
    table: Table = read_table(spec, folder)

    def read(picture: Found) -> tuple[str, ...]:
        caption = table.caption(PurePosixPath(picture.name))
        if not caption:
            raise Missing(f"write one into column {spec.caption_column!r} of {table.path}")
        return (caption,)

    return read


_SOURCES = {
    "textfile": _from_textfiles,
    "filename": _from_names,
    "instanceprompt": _from_instance_prompt,
    "parquet": _from_table,
    "jsonl": _from_table,
    "csv": _from_table,
}
