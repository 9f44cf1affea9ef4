"""The plan: what a run will need, whether that is there, and the smallest change that would make it fit.

Changes are tried in the order in which they cost least: those that train the same first, then fewer bits, then slower steps,
then what trains something else. Each is tried alone, then all up to it together.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..adapter.plan import plan_adapter
from ..data.buckets import Bucket
from ..data.sample import Sample
from ..errors import JobError
from ..flux.load import empty_transformer
from ..flux.quantize import WHOLE
from ..flux.tensors import open_tensors
from ..host_memory import give_back_at_once
from ..setup import Setup
from ..validation.sample import prompts_at_once
from .phases import GIB, Phase, disk_bytes, largest_pass, plan_phases
from .recomputing import as_few_recomputed, is_left_to_memory, say
from .room import Room, room_here

log = logging.getLogger(__name__)

TIGHT = 0.9  # of the memory there is
SMALL_RESOLUTION = 512
FITS, IS_TIGHT, TOO_BIG = "fits", "tight", "does not fit"

Change = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """`changes` are settings by their path in the job, that would make it fit; empty where it fits, None where none would.
    `recomputed` are the blocks that are recomputed in the backward pass."""

    phases: tuple[Phase, ...]
    room: Room
    disk: Mapping[str, int]
    verdict: str
    changes: Change | None
    seconds_per_step: float | None = None
    recomputed: tuple[int, ...] = ()

    @property
    def has_room_for_holes(self) -> bool:
        """Whether the host could hold as much again as it needs, in what was freed and is kept for reuse."""
        return 2 * max(phase.host + phase.mapped for phase in self.phases) <= self.room.host

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(setup: Setup, room: Room | None = None, seconds_per_step: float | None = None) -> Plan:
    """The plan of a job on this machine, or one with that much room; `seconds_per_step` where a probe has told."""
    room = room or room_here(setup.device)
    setup = as_few_recomputed(setup, room)
    phases = plan_phases(setup)
    verdict = judge(phases, room)
    changes: Change | None = {}
    if verdict == TOO_BIG:
        changes = next((tried for tried, other in alternatives(setup) if judge(plan_phases(other), room) != TOO_BIG), None)
    return Plan(phases, room, disk_bytes(setup), verdict, changes, seconds_per_step, setup.recomputed_layers)


def judge(phases: tuple[Phase, ...], room: Room) -> str:
    """The verdict on the phase that needs most. A mapped base counts: read again and again from disk, it is of no use."""
    shares = [(phase.host + phase.mapped) / room.host for phase in phases]
    shares += [phase.card / room.card for phase in phases if room.card]
    return FITS if max(shares) <= TIGHT else IS_TIGHT if max(shares) <= 1 else TOO_BIG


def ready_memory(setup: Setup) -> tuple[Setup, Plan | None]:
    """Before a run: its plan, and the setup with as many blocks to recompute as it asks for; JobError where it does not fit,
    with what would. No plan where nothing is rehearsed: what is small, or not to be checked, which recomputes every block."""
    is_open = is_left_to_memory(setup)
    if is_surely_small(setup, room_here(setup.device)):
        return (replace(setup, num_recomputed=0) if is_open else setup), None
    if setup.job.training.skip_memory_check:
        give_back_at_once()
        return setup, None
    plan = make_plan(setup)
    if not plan.has_room_for_holes:
        give_back_at_once()
    if plan.verdict == TOO_BIG:
        raise JobError(
            f"this run does not fit into the memory there is:\n{describe(plan)}\n"
            "or set training.skip_memory_check to start it all the same"
        )
    if is_open:
        setup = replace(setup, num_recomputed=len(plan.recomputed))
        log.info("%s, as the memory there is asks for", say(setup))
    return setup, plan


def is_surely_small(setup: Setup, room: Room) -> bool:
    """Whether a crude bound from above is far below the memory there is: the base in its format, encoders and VAE (and a base
    that is to be quantised) in float32 and once more, and for each token and block twice what a block keeps without
    checkpointing."""
    one, text = largest_pass(setup), setup.flavour.t5_max_length
    together = {shot.num_tokens: min(len(setup.shots), prompts_at_once(setup.sampler, shot.num_tokens)) for shot in setup.shots}
    sampled = max((2 * count * (num_tokens + text) for num_tokens, count in together.items()), default=0)
    work = 128 * max(one.batch * one.num_joint, sampled) * setup.shape.width
    blocks = setup.shape.num_double + setup.shape.num_single
    widest = 2 * torch.float32.itemsize
    width = setup.dtype.itemsize if setup.job.base.base_model_precision in WHOLE else widest
    others = {setup.files.vae, setup.files.clip_l, setup.files.t5}
    weights = width * num_values(setup.files.transformer) + widest * sum(map(num_values, others))
    return GIB + weights + 32 * setup.num_parameters + work * blocks < 0.25 * min(filter(None, (room.host, room.card)))


@lru_cache(maxsize=32)
def num_values(path: Path) -> int:
    """How many numbers a model's file holds, by its header."""
    return sum(entry.num_values for entry in open_tensors(path).entries.values())


def describe(plan: Plan) -> str:
    """The plan as people read it."""
    lines = [f"{'':<18}{'host':>10}{'card':>10}"]
    for phase in plan.phases:
        card = f"{phase.card / GIB:8.1f} G" if plan.room.card else f"{'-':>10}"
        mapped = f"  and {phase.mapped / GIB:.1f} G of the file" if phase.mapped > GIB // 10 else ""
        lines.append(f"{phase.name:<18}{phase.host / GIB:8.1f} G{card}{mapped}")
    card = f"{plan.room.card / GIB:8.1f} G" if plan.room.card else f"{'-':>10}"
    lines.append(f"{'there is':<18}{plan.room.host / GIB:8.1f} G{card}")
    lines.append(f"caches on disk: {sum(plan.disk.values()) / GIB:.2f} G")
    if plan.recomputed:
        lines.append(f"blocks recomputed in the backward pass: {len(plan.recomputed)}")
    if plan.seconds_per_step is not None:
        lines.append(f"a step takes about {plan.seconds_per_step:.2f} s")
    lines.append(f"verdict: {plan.verdict}")
    if plan.changes is None:
        lines.append("no setting makes it fit; a smaller base or a machine with more memory would")
    elif plan.changes:
        lines.append("it would fit with " + ", ".join(f"{field}: {value}" for field, value in plan.changes.items()))
    return "\n".join(lines)


def alternatives(setup: Setup) -> Iterator[tuple[Change, Setup]]:
    """Changed settings with the job that has them, in the order of what they cost."""
    changes, together = list(_changes(setup)), {}
    for change in changes:
        yield change, _changed(setup, change)
    for change in changes:
        together |= change
        yield dict(together), _changed(setup, together)


def _changes(setup: Setup) -> Iterator[Change]:
    job, training, base = setup.job, setup.job.training, setup.job.base
    if not training.gradient_checkpointing:
        yield {"training.gradient_checkpointing": True}
    if training.gradient_checkpointing_interval > 1:
        yield {"training.gradient_checkpointing_interval": 1}
    if training.train_batch_size > 1:
        accumulation = training.train_batch_size * training.gradient_accumulation_steps
        yield {"training.train_batch_size": 1, "training.gradient_accumulation_steps": accumulation}
    if base.mixed_precision == "no":
        yield {"base.mixed_precision": "bf16"}
    if base.text_encoder_2_precision == "no_change":
        yield {"base.text_encoder_2_precision": "int8-quanto"}
    if base.base_model_precision in WHOLE:
        yield {"base.base_model_precision": "int8-quanto"}
    if base.base_model_precision != "nf4-bnb":
        yield {"base.base_model_precision": "nf4-bnb"}
    num_blocks = setup.shape.num_double + setup.shape.num_single
    if setup.device.type != "cpu" and base.blocks_to_swap < num_blocks // 2:
        for share in (4, 2):
            yield {"base.blocks_to_swap": num_blocks // share, "training.gradient_checkpointing": True}
    if any(sample.bucket.width * sample.bucket.height > SMALL_RESOLUTION**2 * 1.2 for sample in setup.samples):
        yield {"datasets.resolution": SMALL_RESOLUTION}
    if job.lora.lora_rank > 4 and not job.lora.init_lora:  # that file has the rank
        yield {"lora.lora_rank": max(4, job.lora.lora_rank // 4)}


def _changed(setup: Setup, change: Change) -> Setup:
    """The setup of the job with other settings, as far as the plan looks at it."""
    parts: dict[str, dict[str, Any]] = {}
    for path, value in change.items():
        part, _, field = path.partition(".")
        parts.setdefault(part, {})[field] = value
    samples, eval_samples = setup.samples, setup.eval_samples
    resolution = parts.pop("datasets", {}).get("resolution")
    if resolution:
        samples, eval_samples = (tuple(_shrunk(sample, resolution) for sample in group) for group in (samples, eval_samples))
    specs = {part: getattr(setup.job, part).model_copy(update=fields) for part, fields in parts.items()}
    job = setup.job.model_copy(update=specs)
    dtype = torch.bfloat16 if job.base.mixed_precision == "bf16" else torch.float32
    adapter = setup.adapter
    if job.lora != setup.job.lora:
        is_quantised = job.base.base_model_precision not in WHOLE
        adapter = plan_adapter(empty_transformer(setup.shape), job.lora, quantised=is_quantised)
    return replace(setup, job=job, samples=samples, eval_samples=eval_samples, dtype=dtype, adapter=adapter)


def _shrunk(sample: Sample, resolution: int) -> Sample:
    """The sample, and its reference, in a bucket of about that area."""

    def shrunk(bucket: Bucket) -> Bucket:
        scale = min(1.0, resolution / (bucket.width * bucket.height) ** 0.5)
        return Bucket(*(max(64, int(edge * scale) // 64 * 64) for edge in bucket))

    reference = sample.reference and sample.reference._replace(bucket=shrunk(sample.reference.bucket))
    return sample._replace(bucket=shrunk(sample.bucket), reference=reference)
