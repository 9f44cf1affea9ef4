"""Encoded pictures, captions and masks on disk, so that an encoder runs once over each and is then freed.

An entry's name is a digest of all that its content depends on: the source's bytes, the geometry, the encoder file and this
format's version. A changed picture, resolution or encoder therefore meets another name, never a stale entry, and there is no
switch to trust the cache. Each kind has a folder of shards (shards.py); their headers are read at the start, and what a run
needs is checked against its checksums before the run relies on it.

Any number of runs may share a cache without a lock: a shard appears whole under a name of its own, the same entry in two
shards is harmless, and a run keeps the shards open that it reads, so that their removal elsewhere takes their names and not
their bytes. A run over more than MAX_OPEN shards of one kind opens the others as they come.
"""

import hashlib
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType

import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import JobError
from ..uncollected import uncollected
from ..writing import write_atomically
from .aside import threads_aside
from .shards import PATTERN, DamagedShard, Entry, checksum, is_intact, new_name, read_shard

FORMAT = "3"
SHARD_BYTES = 128 << 20
SHARD_ENTRIES = 8192
SHARD_SECONDS = 15.0  # what a power cut loses at most; a stop and an error lose nothing
MAX_OPEN = 256  # files of one kind; Linux gives a process 1024 by default

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool, "U8": torch.uint8}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

log = logging.getLogger(__name__)


def entry_name(kind: str, *parts: str) -> str:
    """What the entry of this kind that is made from these parts is called."""
    return hashlib.sha256("\0".join((FORMAT, kind, *parts)).encode()).hexdigest()[:40]


def content_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Shards:
    """The entries of one kind, in a folder of its own. Reading may be done from several threads."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._entries: dict[str, Entry] = {}
        self._open: OrderedDict[str, FileIO] = OrderedDict()
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._open)
        with uncollected():
            for path in sorted(folder.glob(PATTERN)):  # of the same entry in two shards the newer counts
                self._take_in(path)

    def again(self) -> "Shards":
        """The folder as it is now: other processes may have added to it."""
        return Shards(self._folder)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def read(self, name: str) -> dict[str, Tensor]:
        """The tensors of an entry. JobError when its shard was taken away meanwhile."""
        entry, tensors = self._entries[name], {}
        for place in entry.places:
            data = bytearray(place.end - place.start)
            if self._read_into(entry.shard, place.start, memoryview(data)) < len(data):
                raise JobError(f"cache shard {self._folder / entry.shard} has been cut off; start again, and it is rebuilt")
            tensors[place.name] = torch.frombuffer(data, dtype=DTYPES[place.dtype]).reshape(place.shape)
        return tensors

    def used(self, names: Iterable[str]) -> set[Path]:
        """The shards in which these are, as far as they are anywhere."""
        return {self._folder / self._entries[name].shard for name in names if name in self._entries}

    def check(self, names: Iterable[str], progress: Callable[[int], None] = lambda done: None) -> None:
        """Read the entries of these names once; those that are damaged are dropped, and with them what else is damaged in their
        shards. Marks the shards as used now. `progress` is told how many entries were checked, one by one."""
        by_shard: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            if name in self._entries:
                by_shard[self._entries[name].shard].append(name)
        done = 0
        for shard, wanted in sorted(by_shard.items()):
            is_whole = True
            for name in sorted(wanted, key=lambda name: self._entries[name].places[0].start):
                is_whole &= self._is_intact(self._entries[name])
                done += 1
                progress(done)
            with suppress(OSError):  # a cache that may only be read has no order of use
                os.utime(self._folder / shard)
            if not is_whole:
                self._renew(shard)

    def include(self, path: Path) -> None:
        """Know the entries of a shard that has just been written here, and keep it open."""
        self._take_in(path)
        with self._lock:
            self._opened(path.name)

    def writer(self) -> "Writer":
        """Use as a context, and add entries within it."""
        return Writer(self, self._folder)

    def _take_in(self, path: Path) -> None:
        """Know a shard's entries; one whose header is damaged is removed."""
        try:
            self._entries |= read_shard(path)
        except DamagedShard as reason:
            log.warning("cache shard %s is damaged: %s; it is dropped, and what was in it is encoded again", path, reason)
            _remove(path)
        except FileNotFoundError:
            log.debug("%s was removed by another run", path)

    def _is_intact(self, entry: Entry) -> bool:
        def read(start: int, count: int) -> bytearray:
            data = bytearray(count)
            return data[: self._read_into(entry.shard, start, memoryview(data))]

        try:
            return is_intact(entry, read)
        except JobError:
            return False

    def _renew(self, shard: str) -> None:
        """Write what is intact in a damaged shard into a new one, and remove it."""
        path = self._folder / shard
        old = {name: entry for name, entry in self._entries.items() if entry.shard == shard}
        intact = [name for name, entry in old.items() if self._is_intact(entry)]
        if path.exists():
            log.warning(
                "cache shard %s is damaged: %d of its %d entries are encoded again", path, len(old) - len(intact), len(old)
            )
        with self.writer() as writer:
            for name in intact:
                writer.add(name, self.read(name))
        for name in old.keys() - intact:
            del self._entries[name]
        with self._lock:
            if shard in self._open:
                self._open.pop(shard).close()
        _remove(path)

    def _read_into(self, shard: str, start: int, data: memoryview) -> int:
        """Fill `data` from this byte of the shard on; how many bytes there were."""
        with self._lock:
            file, count = self._opened(shard), 0
            file.seek(start)
            while count < len(data) and (got := file.readinto(data[count:])):
                count += got
            return count

    def _opened(self, shard: str) -> FileIO:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        try:
            file = FileIO(self._folder / shard)
        except FileNotFoundError:
            raise JobError(
                f"cache shard {self._folder / shard} was removed while this run needs it; start again, and it is rebuilt"
            ) from None
        while len(self._open) >= MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        self._open[shard] = file
        return file


class Writer:
    """Entries on their way into shards, which a thread writes while the next are encoded.

    All that was added is on disk and known to the shards when the context is left, however it is left.
    """

    def __init__(self, shards: Shards, folder: Path):
        self._shards, self._folder = shards, folder
        self._waiting: dict[str, dict[str, Tensor]] = {}
        self._bytes = 0
        self._since = time.monotonic()
        self._thread = threads_aside(1, "shards")
        self._writing: Future[Path] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._flush()
            self._wait()
        finally:
            self._thread.shutdown()

    def add(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Keep a copy of these; JobError when an earlier shard could not be written."""
        self._waiting[name] = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())
        is_old = time.monotonic() - self._since >= SHARD_SECONDS
        if self._bytes >= SHARD_BYTES or len(self._waiting) >= SHARD_ENTRIES or is_old:
            self._flush()

    def _flush(self) -> None:
        self._wait()
        if self._waiting:
            self._writing = self._thread.submit(_write_shard, self._folder / new_name(), self._waiting)
        self._waiting, self._bytes, self._since = {}, 0, time.monotonic()

    def _wait(self) -> None:
        """Until what is being written is on disk and known."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            path = writing.result()
        except OSError as error:
            raise JobError(
                f"the cache {self._folder} cannot be written ({error}); make room there, or let it be written"
            ) from None
        self._shards.include(path)


def _write_shard(path: Path, entries: dict[str, dict[str, Tensor]]) -> Path:
    checksums = {name: f"{_checksum(tensors):08x}" for name, tensors in entries.items()}
    tensors = {f"{name}.{key}": tensor for name, parts in entries.items() for key, tensor in parts.items()}
    data = save(tensors, checksums)
    try:
        write_atomically(path, data)
    except FileNotFoundError:  # a process that has just started took the file away before it was claimed
        write_atomically(path, data)
    return path


def _checksum(tensors: dict[str, Tensor]) -> int:
    return checksum(
        (key, NAMES[tensor.dtype], tuple(tensor.shape), iter((tensor.view(torch.uint8).numpy(),)))
        for key, tensor in sorted(tensors.items())
    )


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # Windows removes no file that another run has open
        log.info("%s stays for now: %s", path, error)


def _close_all(files: OrderedDict[str, FileIO]) -> None:
    for file in files.values():
        file.close()
