"""Going on with another job: which settings may change in the middle of a run, and which would make it another run.

What may change is taken and logged as an event; every other difference is an error that lists it. What was trained so far
stays what it was, so nothing that names the samples, the adapter or what is drawn at random may change.
"""

from typing import Any, NamedTuple

from .errors import JobError
from .job import TrainJob

MAY_CHANGE = (
    "metadata",
    "publishing.",
    "validation.",
    "optimizer.learning_rate",
    "optimizer.lr_",
    "training.max_train_steps",
    "training.num_train_epochs",
    "training.checkpoint",  # the interval and the limit
    "training.gradient_checkpointing",  # and its interval: other memory, the same training
    "training.log_interval",
    "training.ema_validation",
    "training.device",
    "training.num_devices",
    "training.enable_activation_offloading",  # this and the rest: other memory, the same training
    "training.skip_memory_check",
    "training.torch_compile",  # the same training but for rounding
    "training.cache_size_limit",
    "training.report_to",
    "training.tracker_project_name",
    "base.offload_during_startup",
    "base.vae_enable",
    "base.vae_batch_size",
    "base.blocks_to_swap",
    "base.modulation_offload",
    "base.attention_mechanism",
    "base.quantize_via",
    "base.allow_download",
    "base.preview_decoder_path",
)


class Change(NamedTuple):
    """One setting, by its path in the job."""

    field: str
    old: Any
    new: Any


def allowed_changes(old: TrainJob, new: TrainJob) -> list[Change]:
    """What differs, all of it allowed; JobError lists every difference that is not."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    fields = list(dict.fromkeys([*before, *after]))
    changes = [Change(f, before.get(f), after.get(f)) for f in fields if before.get(f) != after.get(f)]
    refused = [change for change in changes if not change.field.startswith(MAY_CHANGE)]
    if refused:
        lines = "\n".join(f"  {field}: {was!r} in the run, {now!r} in the new job" for field, was, now in refused)
        raise JobError(
            f"this run cannot go on with that job, because these settings make another run of it:\n{lines}\n"
            "put them back, or start a new run with `flux-lora run`"
        )
    return changes


def _flat(data: Any, path: str = "") -> dict[str, Any]:
    """Dotted path -> value, lists by their numbers."""
    if isinstance(data, dict):
        items = data.items()
    elif isinstance(data, list) and any(isinstance(entry, dict) for entry in data):
        items = enumerate(data)
    else:
        return {path: data}
    return {key: value for name, part in items for key, value in _flat(part, f"{path}.{name}" if path else str(name)).items()}
