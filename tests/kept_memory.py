"""Whether freed memory stays with the process after `ready_memory`: python kept_memory.py FILE, with a FLUX transformer.

Prints JSON: whether the plan had room for holes, and whether a block that was freed is reused.
"""

import ctypes
import json
import sys
from pathlib import Path

import torch

from benchmarks.host_memory import make_setup
from trainer_core.plan.plan import ready_memory

BLOCK = 4 << 20  # bytes, above the threshold of `host_memory`


NAMES = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


class Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2; `hblks` are the blocks that are mapped on their own."""

    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def is_reused() -> bool:
    """A block of that size, freed once, is taken from the heap the next time: it is not mapped on its own."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Mallinfo
    torch.empty(BLOCK, dtype=torch.uint8)
    before = libc.mallinfo2().hblks
    block = torch.empty(BLOCK, dtype=torch.uint8)
    return libc.mallinfo2().hblks == before and len(block) == BLOCK


_, plan = ready_memory(make_setup(Path(sys.argv[1]), "int8-quanto", 512))
print(json.dumps([plan.has_room_for_holes, is_reused()]))
