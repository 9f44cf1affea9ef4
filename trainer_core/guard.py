"""When memory runs out: what was being done, and the three settings that would help most in this very job.

The list is in the order of what each saves in a FLUX LoRA training; what the job has already done is left out, and so is what
helps another stage only: encoders do not care about gradient checkpointing.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

import torch

from .errors import JobError
from .job import TrainJob
from .specs.dataset import DatasetSpec

INDEXING, ENCODING, LOADING, TRAINING = "looking at the files", "encoding the dataset", "loading the base", "training"
PICTURING, EVALUATING = "making pictures", "evaluating"
ADVICE = 3
SMALL_RESOLUTION = 512
_CPU_OUT_OF_MEMORY = re.compile(
    r"can(no|')t allocate memory|not enough memory|out of memory|bad_alloc|can't start new thread|could not create a primitive",
    re.IGNORECASE,
)

Option = tuple[bool, str]  # whether it applies to a job, and what to change
CLOSE: Option = (True, "close other programs that use the memory")


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
    lines = [f"  {number}. {text}" for number, text in enumerate(advice(job, doing)[:ADVICE], 1)]
    return f"{doing}: out of memory{wanted}. What helps most here:\n" + "\n".join(lines)


def advice(job: TrainJob, doing: str = TRAINING) -> list[str]:
    """What would save memory in this job while it does that, the most effective first."""
    return [text for applies, text in (*_OPTIONS.get(doing, _training)(job), CLOSE) if applies]


def _indexing(job: TrainJob) -> list[Option]:
    return [
        (True, "smaller pictures: each is decoded whole, several at a time"),
        (True, "datasets.max_num_samples, which takes fewer of them"),
    ]


def _encoding(job: TrainJob) -> list[Option]:
    base = job.base
    return [
        (not base.offload_during_startup, "base.offload_during_startup: true, which holds one text encoder at a time"),
        (
            base.text_encoder_2_precision == "no_change",
            "base.text_encoder_2_precision: int8-quanto, which halves the largest encoder, T5",
        ),
        (base.vae_batch_size > 1, "base.vae_batch_size: 1"),
        (not base.vae_enable_tiling, "base.vae_enable_tiling: true, for large pictures"),
        _smaller_pictures(job),
    ]


def _loading(job: TrainJob) -> list[Option]:
    return [(job.base.mixed_precision == "no", "base.mixed_precision: bf16"), _fewer_bits(job), _swapping(job)]


def _picturing(job: TrainJob) -> list[Option]:
    return [
        *_loading(job),
        (not job.base.vae_enable_tiling, "base.vae_enable_tiling: true, for large pictures"),
        (True, "smaller or fewer pictures (validation.validation_resolution, num_validation_images)"),
    ]


def _evaluating(job: TrainJob) -> list[Option]:
    return [(job.training.train_batch_size > 1, "training.train_batch_size: 1"), *_loading(job), _smaller_pictures(job)]


def _training(job: TrainJob) -> list[Option]:
    training = job.training
    batch, accumulation = training.train_batch_size, training.gradient_accumulation_steps
    return [
        (not training.gradient_checkpointing, "training.gradient_checkpointing: true"),
        (training.gradient_checkpointing_interval > 1, "training.gradient_checkpointing_interval: 1"),
        (
            batch > 1,
            f"training.train_batch_size: 1 with gradient_accumulation_steps: {batch * accumulation}, which trains the same",
        ),
        *_loading(job),
        _smaller_pictures(job),
        (job.optimizer.optimizer == "adamw", "optimizer.optimizer: bnb-adamw8bit, or adamw_bf16 where there is no NVIDIA card"),
        (
            training.gradient_checkpointing and not training.enable_activation_offloading and training.device != "cpu",
            "training.enable_activation_offloading: true",
        ),
        (job.lora.lora_rank > 4, f"lora.lora_rank: {max(4, job.lora.lora_rank // 2)} instead of {job.lora.lora_rank}"),
        (job.lora.flux_lora_target not in ("mmdit", "tiny", "nano"), "lora.flux_lora_target: mmdit, which adapts fewer layers"),
        (not job.routes, "a TREAD route, which leaves out image tokens in training"),
    ]


def _fewer_bits(job: TrainJob) -> Option:
    return (
        job.base.base_model_precision in ("no_change", "bf16"),
        "base.base_model_precision: int8-quanto, which halves the base, or nf4-bnb, which quarters it",
    )


def _swapping(job: TrainJob) -> Option:
    return (
        job.base.blocks_to_swap == 0 and job.training.device != "cpu",
        "base.blocks_to_swap: 20, which leaves so many blocks of the base in RAM (needs gradient_checkpointing)",
    )


def _smaller_pictures(job: TrainJob) -> Option:
    widest = max(map(_widest, job.datasets))
    now = "the home resolution" if widest == inf else f"{widest:.0f}"
    return widest > SMALL_RESOLUTION, f"datasets.resolution: {SMALL_RESOLUTION} instead of {now}"


def _widest(dataset: DatasetSpec) -> float:
    """The edge in pixels of the dataset's largest resolution; infinite where it is the base's own."""
    largest = max(dataset.resolution, default=inf)
    return (largest * 1e6) ** 0.5 if dataset.resolution_type == "area" else largest


_OPTIONS: dict[str, Callable[[TrainJob], list[Option]]] = {
    INDEXING: _indexing,
    ENCODING: _encoding,
    LOADING: _loading,
    PICTURING: _picturing,
    EVALUATING: _evaluating,
}
