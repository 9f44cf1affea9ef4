"""When memory runs out: what was being done, and the three settings that would help most in this very job.

The list is in the order of what each saves in a FLUX LoRA training; what the job has already done is left out.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import torch

from .errors import JobError
from .job import TrainJob
from .specs.dataset import DatasetSpec

ADVICE = 3
SMALL_RESOLUTION = 512
_CPU_OUT_OF_MEMORY = re.compile(
    r"can(no|')t allocate memory|not enough memory|out of memory|bad_alloc|can't start new thread|could not create a primitive",
    re.IGNORECASE,
)


@contextmanager
def memory_watched(job: TrainJob, doing: str) -> Iterator[None]:
    """Turns running out of memory in here, on the card or in RAM, into a JobError that says what helps."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise JobError(explain(job, doing, str(error))) from None


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says that memory ran out, on the card or in RAM."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_CPU_OUT_OF_MEMORY.search(str(error)))


def explain(job: TrainJob, doing: str, error: str) -> str:
    """The message: what ran out where, and what to change."""
    tried = re.search(r"allocate (\d[\d.]*\s?\w+)", error)
    wanted = f" (it needed {tried[1]} more)" if tried else ""
    lines = [f"  {number}. {text}" for number, text in enumerate(advice(job)[:ADVICE], 1)]
    return f"{doing}: out of memory{wanted}. What helps most here:\n" + "\n".join(lines)


def advice(job: TrainJob) -> list[str]:
    """What would save memory in this job, the most effective first."""
    training, widest = job.training, max(map(_widest, job.datasets))
    batch, accumulation = training.train_batch_size, training.gradient_accumulation_steps
    options = [
        (not training.gradient_checkpointing, "training.gradient_checkpointing: true"),
        (training.gradient_checkpointing_interval > 1, "training.gradient_checkpointing_interval: 1"),
        (
            batch > 1,
            f"training.train_batch_size: 1 with gradient_accumulation_steps: {batch * accumulation}, which trains the same",
        ),
        (job.base.mixed_precision == "no", "base.mixed_precision: bf16"),
        (
            job.base.base_model_precision in ("no_change", "bf16"),
            "base.base_model_precision: int8-quanto, which halves the base, or nf4-bnb, which quarters it",
        ),
        (
            job.base.blocks_to_swap == 0 and training.device != "cpu",
            "base.blocks_to_swap: 20, which leaves so many blocks of the base in RAM (needs gradient_checkpointing)",
        ),
        (
            widest > SMALL_RESOLUTION,
            f"datasets.resolution: {SMALL_RESOLUTION} instead of {'the home resolution' if widest == inf else f'{widest:.0f}'}",
        ),
        (job.optimizer.optimizer == "adamw", "optimizer.optimizer: bnb-adamw8bit, or adamw_bf16 where there is no NVIDIA card"),
        (
            training.gradient_checkpointing and not training.enable_activation_offloading and training.device != "cpu",
            "training.enable_activation_offloading: true",
        ),
        (job.lora.lora_rank > 4, f"lora.lora_rank: {max(4, job.lora.lora_rank // 2)} instead of {job.lora.lora_rank}"),
        (job.lora.flux_lora_target not in ("mmdit", "tiny", "nano"), "lora.flux_lora_target: mmdit, which adapts fewer layers"),
        (not job.routes, "a TREAD route, which leaves out image tokens in training"),
        (True, "close other programs that use the memory"),
    ]
    return [text for applies, text in options if applies]


def _widest(dataset: DatasetSpec) -> float:
    """The edge in pixels of the dataset's largest resolution; infinite where it is the base's own."""
    largest = max(dataset.resolution, default=inf)
    return (largest * 1e6) ** 0.5 if dataset.resolution_type == "area" else largest
