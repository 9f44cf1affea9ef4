"""Captions in a table: parquet, JSON lines or CSV, one row a picture, read once.

A row names its picture by the path below the folder, by the file's name, or by either without the suffix. The nearest of
these counts, and a row that could mean two pictures is an error rather than a guess. Needs no torch; parquet needs pyarrow.
"""

import csv
import io
import json
import logging
import math
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple
from unicodedata import normalize

from ..errors import JobError
from ..file_names import expanded
from ..run_dir import PICTURE_SUFFIXES
from ..specs.dataset import DatasetSpec
from .text_files import TextReader, one_line

DELIMITERS = ",;\t|"
MAX_NAMED = 3
COLUMNS = ("filename_column", "caption_column", "fallback_caption_column")

log = logging.getLogger(__name__)

Cells = dict[str, Any]  # by column


class Row(NamedTuple):
    place: str  # such as 'line 3'
    caption: str


class Table:
    """The rows by what they call their picture. Remembers which picture took which row."""

    def __init__(self, path: Path, rows: dict[str, Row]):
        self.path = path
        self._rows = rows
        self._taken: dict[str, str] = {}

    def caption(self, picture: PurePath) -> str:
        """Of a picture by its path below the folder, '' where the table has none; JobError where a row fits two pictures."""
        for name in names_of(picture.as_posix()):
            if (row := self._rows.get(name)) is not None:
                first = self._taken.setdefault(name, picture.as_posix())
                if first != picture.as_posix():
                    raise JobError(
                        f"{row.place} of {self.path}: {name!r} could be {first} or {picture.as_posix()}; "
                        "write the path below the folder"
                    )
                return row.caption
        return ""


def names_of(relative: str) -> tuple[str, ...]:
    """What a row may call this picture, the most exact first."""
    path = normalize("NFC", relative)
    without, name = os.path.splitext(path)[0], path.rpartition("/")[2]
    return path, without, name, os.path.splitext(name)[0]


def read_table(spec: DatasetSpec, folder: Path) -> Table:
    """The captions of `caption_table`, which lies where its path says or below the folder.

    JobError where the file or a column is missing, a line cannot be read, or two rows are for one picture. Rows that fit no
    picture of the folder are counted in a warning.
    """
    path = table_path(spec, folder)
    if not path.is_file():
        raise JobError(f"dataset {spec.id!r}: there is no file {path.absolute()}; correct caption_table")
    rows: dict[str, Row] = {}
    for place, cells in _READERS[spec.caption_strategy](path, spec):
        where = f"{place} of {path}"
        name = _name(_text(cells.get(spec.filename_column), spec.filename_column, where), folder)
        if not name:
            raise JobError(f"{where}: column {spec.filename_column!r} is empty; write the picture's name into it")
        caption = _text(cells.get(spec.caption_column), spec.caption_column, where)
        if not caption and spec.fallback_caption_column:
            caption = _text(cells.get(spec.fallback_caption_column), spec.fallback_caption_column, where)
        if name in rows:
            raise JobError(f"{path}: {rows[name].place} and {place} are both for {name!r}; take one out")
        rows[name] = Row(place, caption)
    _warn_of_others(path, rows, folder)
    return Table(path, rows)


def table_path(spec: DatasetSpec, folder: Path) -> Path:
    """Where the table of this dataset is: as given, or else below the folder."""
    given = expanded(spec.caption_table)
    return given if given.is_absolute() or given.is_file() else folder / given


def _name(text: str, folder: Path) -> str:
    """A row's name of its picture, as `names_of` writes it."""
    name = normalize("NFC", text.replace("\\", "/"))
    for start in (f"{normalize('NFC', folder.absolute().as_posix())}/", "./"):
        name = name.removeprefix(start)
    return name


def _text(value: Any, column: str, where: str) -> str:
    """A cell as one line of text; '' where nothing is in it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str | int | float):
        raise JobError(f"{where}: column {column!r} holds a {type(value).__name__}, not text; write text into it")
    text = one_line(str(value))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise JobError(f"{where}: column {column!r} holds half of a character pair; write the text anew") from None
    return text


def _check_columns(found: Collection[str], path: Path, spec: DatasetSpec) -> None:
    for field in COLUMNS:
        column = getattr(spec, field)
        if column and column not in found:
            listed = ", ".join(map(repr, found)) or "none"
            raise JobError(f"{path} has no column {column!r}; correct {field}: its columns are {listed}")


def _wanted(spec: DatasetSpec) -> list[str]:
    return list(dict.fromkeys(filter(None, (getattr(spec, field) for field in COLUMNS))))


def _read_csv(path: Path, spec: DatasetSpec) -> Iterator[tuple[str, Cells]]:
    """The first line names the columns, and tells which delimiter it is: the first with which the wanted ones are there."""
    text = _table_text(path)
    headers = {delimiter: _header(text, delimiter) for delimiter in DELIMITERS}
    fitting = [delimiter for delimiter, columns in headers.items() if set(_wanted(spec)) <= set(columns)]
    delimiter = fitting[0] if fitting else max(headers, key=lambda delimiter: len(headers[delimiter]))
    columns = headers[delimiter]
    _check_columns(columns, path, spec)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        next(reader)
        for cells in reader:
            if len(cells) > len(columns):
                raise JobError(
                    f"line {reader.line_num} of {path} has {len(cells)} cells, but there are {len(columns)} columns; "
                    f'put text that holds {delimiter!r} between quotes (")'
                )
            if any(cells):
                yield f"line {reader.line_num}", dict(zip(columns, cells, strict=False))
    except csv.Error as error:
        raise JobError(f"line {reader.line_num} of {path} cannot be read ({error}); mend it") from None


def _table_text(path: Path) -> str:
    try:
        return TextReader("caption table").read(path)
    except OSError as error:
        raise JobError(f"caption table {path} cannot be read ({error.strerror}); mend that") from None


def _header(text: str, delimiter: str) -> list[str]:
    try:
        first = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    except csv.Error:
        return []
    return [column.strip() for column in first]


def _read_jsonl(path: Path, spec: DatasetSpec) -> Iterator[tuple[str, Cells]]:
    """An object a line; a column counts as there when one line has it."""
    wanted, found, rows = _wanted(spec), {}, []
    for number, line in enumerate(_table_text(path).split("\n"), 1):  # splitlines also cuts inside of text
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise JobError(f"line {number} of {path} is no JSON ({error}); write one object a line") from None
        if not isinstance(cells, dict):
            raise JobError(f"line {number} of {path} is no JSON object, such as {{{wanted[0]!r}: ...}}; write one a line")
        found |= dict.fromkeys(cells)
        rows.append((f"line {number}", {column: cells.get(column) for column in wanted}))
    _check_columns(found, path, spec)
    yield from rows


def _read_parquet(path: Path, spec: DatasetSpec) -> Iterator[tuple[str, Cells]]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise JobError(
            "caption_strategy 'parquet' needs pyarrow: run `pip install pyarrow` with the Python that trains, "
            "or save the table as csv or jsonl"
        ) from None
    try:
        with ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names, path, spec)
            columns = {name: file.read(columns=[name])[name].to_pylist() for name in _wanted(spec)}
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:  # its texts may be no UTF-8
        raise JobError(f"{path} cannot be read as parquet ({(str(error).splitlines() or [''])[0]}); write it anew") from None
    for number, cells in enumerate(zip(*columns.values(), strict=True), 1):
        yield f"row {number}", dict(zip(columns, cells, strict=True))


def _warn_of_others(path: Path, rows: Iterable[str], folder: Path) -> None:
    """Counts the rows that fit no picture below the folder."""
    known: set[str] = set()
    for parent, _, files in os.walk(folder):
        below = os.path.relpath(parent, folder).replace(os.sep, "/") + "/"
        for file in files:
            if os.path.splitext(file)[1].rstrip().lower() in PICTURE_SUFFIXES:
                known.update(names_of(below.removeprefix("./") + file))
    others = [name for name in rows if name not in known]
    if others:
        named = ", ".join(map(repr, others[:MAX_NAMED])) + (", ..." if len(others) > MAX_NAMED else "")
        log.warning("%s: %d of its rows are for no picture in %s: %s", path, len(others), folder, named)


_READERS = {"parquet": _read_parquet, "jsonl": _read_jsonl, "csv": _read_csv}
