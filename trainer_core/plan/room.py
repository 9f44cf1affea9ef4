"""The memory that this process could have now."""

from dataclasses import dataclass

import psutil
import torch

from ..host_memory import own_bytes


@dataclass(frozen=True)
class Room:
    """Bytes that this process could have now: host memory, and the card's where there is one."""

    host: int
    card: int


def room_here(device: torch.device) -> Room:
    """What is free now, with what this process holds already."""
    card = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
    return Room(psutil.virtual_memory().available + own_bytes(), card)
