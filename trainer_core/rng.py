"""Everything random is a function of (seed, step, purpose).

No generator state is carried from step to step, so a resumed run draws exactly what the uninterrupted one would have drawn,
and validation cannot disturb training. The global random state is neither read nor set.
The habit is that of NVlabs' EDM2 training loop.
"""

import hashlib

import torch


def derive_seed(seed: int, step: int, purpose: str) -> int:
    """A 63-bit seed for this purpose at this step; different purposes are independent."""
    digest = hashlib.sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """A fresh CPU generator. Draw on the CPU and move the tensor: the numbers are then the same on every device."""
    return torch.Generator("cpu").manual_seed(derive_seed(seed, step, purpose))
