"""What was learned of picture files, kept, so that a hundred thousand of them are decoded once and not at every start.

A small SQLite database below the cache folder: for each file by its absolute path the stamp that it had (bytes, times of
change) and its facts, or the reason why it cannot be trained on; a checksum over each of these. Another stamp, another look. It
is written every few seconds, so an interrupted first look continues where it was; several processes may use it at once. Nothing
depends on it: where it is damaged it is made anew, where it cannot be written the run goes on without it.
"""

import logging
import os
import sqlite3
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from pathlib import Path

import PIL

from ..uncollected import uncollected
from .find import Found
from .lookers import Lookers
from .sample import Facts
from .threads import Threads

FORMAT = 2  # another one is another table: change it whenever a look would tell something else
NAME = "files.sqlite"
THREADS = min(8, max(2, os.cpu_count() or 1))
AT_ONCE = 32  # files that a thread takes
SECONDS_BETWEEN_WRITES = 2.0
SECONDS_TO_LEAVE = 0.5  # between two chances to
SECONDS_TO_WAIT = 30.0  # for another process that writes

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Learned = dict[str, Facts | str]  # by `Found.place`: facts, or the reason against the file


def learn(files: Sequence[Found], cache_dir: Path | None, progress: Progress) -> Learned:
    """The facts of each file, or the reason why it has none; one that is named twice is looked at once.

    What is remembered below `cache_dir` is not looked at. `progress` hears of files done and files in all.
    """
    wanted = {file.place: file for file in files}
    memory = FileMemory(cache_dir / NAME) if cache_dir else None
    learned = memory.recall(wanted) if memory else {}
    new = [file for place, file in wanted.items() if place not in learned]
    progress(len(learned), len(wanted))
    fresh: list[tuple[Found, Facts | str]] = []
    written = time.monotonic()
    try:
        with closing(_looks(new)) as looks:
            for looked in looks:
                for file, told, lasts in looked:
                    learned[file.place] = told
                    if lasts:
                        fresh.append((file, told))
                progress(len(learned), len(wanted))
                if memory and time.monotonic() - written > SECONDS_BETWEEN_WRITES:
                    memory.keep(fresh)
                    fresh.clear()
                    written = time.monotonic()
    finally:
        if memory:
            memory.keep(fresh)
    return learned


def now_and_then(progress: Progress) -> Progress:
    """The same, but it is told no more than twice a second."""
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_TO_LEAVE:
            last = time.monotonic()
            progress(done, total)

    return tell


class FileMemory:
    """The database at that path; after an error that is not mended by making it anew it forgets everything in silence."""

    def __init__(self, path: Path):
        self._path = path
        self._usable = True

    def recall(self, wanted: dict[str, Found]) -> Learned:
        """What is known of these files as they are now."""
        with uncollected():
            return self._attempt(lambda database: _recall(database, wanted)) or {}

    def keep(self, learned: Sequence[tuple[Found, Facts | str]]) -> None:
        """Remember this of these files."""
        if learned:
            self._attempt(lambda database: _keep(database, learned))

    def _attempt(self, work: Callable[[sqlite3.Connection], Learned | None]) -> Learned | None:
        """The outcome of the work on the open database, which is made anew once if it is damaged; None where it fails."""
        for last in (False, True):
            if not self._usable:
                return None
            try:
                with closing(self._open()) as database, database:
                    return work(database)
            except sqlite3.OperationalError as error:  # locked for long, read-only, full, no such folder
                self._give_up(error)
            except sqlite3.DatabaseError as error:
                if last:
                    self._give_up(error)
                else:
                    self._discard(error)
            except OSError as error:
                self._give_up(error)
        return None

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._path, timeout=SECONDS_TO_WAIT)
        try:
            database.execute(CREATE)
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _discard(self, error: sqlite3.DatabaseError) -> None:
        log.warning("%s is damaged (%s) and is made anew: each picture is looked at once more", self._path, error)
        try:
            for path in (self._path.with_name(NAME + "-journal"), self._path):
                path.unlink(missing_ok=True)
        except OSError as failure:
            self._give_up(failure)

    def _give_up(self, error: Exception) -> None:
        log.warning("%s cannot be used (%s); the next start looks at each picture again", self._path, error)
        self._usable = False


READER = f"Pillow {PIL.__version__}"  # another one may read what this one cannot
TABLE = f"files_{FORMAT}"
COLUMNS = "path, size, modified, changed, width, height, digest, look, orientation, has_alpha, reason, reader, checksum"
CREATE = f"CREATE TABLE IF NOT EXISTS {TABLE} (path BLOB PRIMARY KEY, {COLUMNS.removeprefix('path, ')}) WITHOUT ROWID"
INSERT = f"INSERT OR REPLACE INTO {TABLE} ({COLUMNS}) VALUES ({', '.join('?' * len(COLUMNS.split(', ')))})"
SELECT = f"SELECT {COLUMNS} FROM {TABLE} WHERE path >= ? AND path < ?"
SIGN = 1 << 63  # SQLite's integers are signed


def _recall(database: sqlite3.Connection, wanted: dict[str, Found]) -> Learned:
    known: Learned = {}
    for root in dict.fromkeys(file.root for file in wanted.values()):
        first = os.fsencode(root) + b"/"
        for *row, checksum in database.execute(SELECT, (first, first[:-1] + b"0")):
            if checksum != _checksum(row):
                continue
            path, size, modified, changed, *facts, reason, reader = row
            file = wanted.get(place := os.fsdecode(path))
            if file is None or file.stamp != (size, modified, changed):
                continue
            if reason is None:
                width, height, digest, look, orientation, has_alpha = facts
                known[place] = Facts(width, height, digest, look + SIGN, orientation, bool(has_alpha))
            elif reader == READER:
                known[place] = reason
    return known


def _keep(database: sqlite3.Connection, learned: Sequence[tuple[Found, Facts | str]]) -> None:
    rows = []
    for file, told in learned:
        if isinstance(told, Facts):
            what = (*told._replace(look=told.look - SIGN, has_alpha=int(told.has_alpha)), None)  # as the database gives it back
        else:
            what = (*(None,) * len(Facts._fields), told)
        row = [os.fsencode(file.place), *file.stamp, *what, READER]
        rows.append((*row, _checksum(row)))
    database.executemany(INSERT, rows)


def _checksum(row: list[bytes | str | int | None]) -> int:
    """CRC-32 of a row: the database notices damage to its own structure, but not to what is kept in it."""
    return zlib.crc32(repr(row).encode())


def _looks(files: Sequence[Found]) -> Iterator[list[tuple[Found, Facts | str, bool]]]:
    """Each file with what was learned of it and whether that lasts, in their order; nothing now and then, so that whoever waits
    may leave.

    By a few threads, as reading, digests and decoding hold no interpreter lock, and where there are many files by processes.
    """
    waiting: deque[Future] = deque()
    with Lookers((file.stamp[0] for file in files), THREADS) as lookers, Threads(THREADS) as pool:
        try:
            for start in range(0, len(files), AT_ONCE):
                waiting.append(pool.submit(_look_at_each, files[start : start + AT_ONCE], lookers))
                if len(waiting) > 2 * THREADS:
                    yield from _when_done(waiting.popleft())
            while waiting:
                yield from _when_done(waiting.popleft())
        finally:
            lookers.leave()
            for future in waiting:
                future.cancel()


def _when_done(future: Future) -> Iterator[list[tuple[Found, Facts | str, bool]]]:
    while not wait([future], SECONDS_TO_LEAVE).done:
        yield []
    yield future.result()


def _look_at_each(files: Sequence[Found], lookers: Lookers) -> list[tuple[Found, Facts | str, bool]]:
    """Of each file, as long as somebody waits for it."""
    told = lookers.look_at_each([(file.file, file.stamp[0]) for file in files])
    return [(file, *one) for file, one in zip(files, told, strict=False)]
