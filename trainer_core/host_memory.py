"""Host memory: how much of it is this process's own, and that what is freed goes back to the system at once.

glibc takes a block from a heap once a block of its size (up to 32 MiB) was freed, and a heap shrinks only from its end: one
small tensor that stays, such as a gradient, keeps the holes below it. Layers brought back from 4 bits are such blocks: a step
of the whole FLUX.1 on a CPU held 3.3 GB in holes. With a fixed threshold each large block is mapped on its own and unmapped
when it is freed, and its pages are asked of the system anew each time: that costs a step on a CPU an eighth in float32 and a
quarter in bfloat16 (nothing where the work is on a card), so it is for runs whose plan leaves no room for holes.
"""

import ctypes
import platform

import psutil

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE = 1 << 20  # bytes


def own_bytes() -> int:
    """What this process holds and cannot drop: on Linux without the pages of files, such as libraries, as in the plan."""
    told = psutil.Process().memory_info()
    return told.rss - told.shared if psutil.LINUX else told.rss


def give_back_at_once() -> None:
    """From now on, in this process. Does nothing without glibc: other allocators do so by themselves."""
    if platform.libc_ver()[0] == "glibc":
        accepted = ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
        assert accepted, "mallopt refused the threshold"
