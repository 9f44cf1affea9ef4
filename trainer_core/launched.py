"""What a launcher has told this process: `accelerate launch` and torchrun start it beside others, and say so in its
environment.

Light, for the command line asks before anything heavy is loaded.
"""

import os
from typing import NamedTuple


class Place(NamedTuple):
    """This process among all, and among those of its machine. `is_sharded`: accelerate's configuration wants the base shared
    out (FSDP); `engine` is what else it wants to train with, or ''."""

    rank: int
    count: int
    local_rank: int
    is_sharded: bool
    engine: str


def launched_place() -> Place | None:
    """Where a launcher has put this process, None where it runs by itself."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return None
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    engines = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
    engine = next((name for variable, name in engines.items() if _is_on(variable)), "")
    return Place(rank, count, local_rank, _is_on("ACCELERATE_USE_FSDP"), engine)


def speaks() -> bool:
    """Whether this process prints what came of the command: of several, the first."""
    place = launched_place()
    return place is None or place.rank == 0


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")
