"""The RAM that is shown beside the plan: what a process holds and cannot drop."""

import mmap
import sys
from pathlib import Path

import pytest

from trainer_core.host_memory import own_bytes

MANY = 64 << 20  # bytes
OTHER = 8 << 20  # what the interpreter may take or give back meanwhile


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere pages of files cannot be told from the rest")
def test_what_a_process_made_is_its_own_and_what_it_reads_from_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(MANY))
    before = own_bytes()
    with mmap.mmap(-1, MANY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as made:  # new pages, whatever was freed before
        for start in range(0, MANY, mmap.PAGESIZE):
            made[start] = 1
        assert abs(own_bytes() - before - MANY) < OTHER
    before = own_bytes()
    with (tmp_path / "weights").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[start] for start in range(0, MANY, mmap.PAGESIZE)) == 0
        assert abs(own_bytes() - before) < OTHER
