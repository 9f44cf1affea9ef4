"""Whether this processor computes in bfloat16 as fast as in float32: found by trying, since no public table of torch's tells.

Without instructions of its own for bfloat16 a processor emulates them: on an AVX2 machine pico's training step took thirteen
times as long as in float32.
"""

import time
from functools import lru_cache

import torch

EDGE = 128  # of the matrices: even emulated, a few hundredths of a second in all
ROUNDS = 3


@lru_cache(maxsize=1)
def bf16_slowdown() -> float:
    """How many times as long a matrix product takes in bfloat16 as in float32."""
    return _seconds(torch.bfloat16) / _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """The shortest of a few rounds, the first of which makes ready."""
    matrix = torch.full((EDGE, EDGE), 0.5, dtype=dtype)
    taken = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        matrix @ matrix
        taken.append(time.perf_counter() - began)
    return min(taken[1:])
