"""What a launcher has told this process: `accelerate launch` and torchrun start it beside others, and say so in its
environment. Whoever comes with a configuration of DeepSpeed gets what it asks for by our own means: `zero_stage`.

Light, for the command line asks before anything heavy is loaded.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

from .errors import JobError

SHARES_WEIGHTS = 3  # from this stage on ZeRO shares out the weights, too; before, what is trained alone


class Place(NamedTuple):
    """This process among all, and among those of its machine. `is_sharded`: accelerate's configuration wants the base shared
    out (FSDP); `engine` is what it wants to train with that cannot be stood in for, or ''."""

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
    engine = "Megatron-LM" if _is_on("ACCELERATE_USE_MEGATRON_LM") else ""
    return Place(rank, count, local_rank, _is_on("ACCELERATE_USE_FSDP"), engine)


def zero_stage() -> int | None:
    """The stage of ZeRO, 0 to 3, of the DeepSpeed that accelerate's configuration asks for; None where it asks for none.
    JobError where a file of DeepSpeed's own was named that does not tell."""
    if not _is_on("ACCELERATE_USE_DEEPSPEED"):
        return None
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if path == "none":
        return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))  # accelerate's default, too
    try:
        stage = json.loads(Path(path).read_text(encoding="utf-8")).get("zero_optimization", {}).get("stage", 0)
    except (OSError, ValueError, AttributeError) as error:
        raise JobError(
            f"accelerate's configuration names DeepSpeed's file {path}, that cannot be read: {error}; name one that "
            "can, or say --zero_stage instead"
        ) from error
    if stage not in range(SHARES_WEIGHTS + 1):
        raise JobError(f"zero_optimization.stage in {path} is {stage!r}; set it to 0, 1, 2 or 3")
    return stage


def said_of_zero() -> str:
    """What is done in the place of DeepSpeed; '' where nobody asks for it, or there is one process, which shares nothing."""
    stage = zero_stage() if launched_place() else None
    if stage is None:
        return ""
    if stage >= SHARES_WEIGHTS:
        done = "FSDP2 shares out the frozen base over the processes, as that would"
    else:
        done = "each process keeps the adapter whole, which is too small to gain from being shared out; they share the samples"
    return (
        f"accelerate's configuration asks for DeepSpeed's ZeRO {stage}: {done}. DeepSpeed itself and its offloading are not "
        "used; batch, accumulation, clipping, precision and optimiser are those of the job (docs/scale.md)"
    )


def speaks() -> bool:
    """Whether this process prints what came of the command: of several, the first."""
    place = launched_place()
    return place is None or place.rank == 0


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")
