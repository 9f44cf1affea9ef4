"""Whether a job's flavour, its settings and its files belong together, found out from headers alone.

A flavour brings defaults where the job leaves a setting to it: a number at -1 or 0, noise levels, guidance or text mask that
were never touched (`flow_of`). It never changes what the job has set. So what contradicts the flavour is an error with the mend
in it, and what is merely unusual a warning.
"""

import logging
from pathlib import Path
from typing import Any

from .errors import JobError
from .flux.dialects import open_clip, open_t5, open_vae
from .flux.files import ModelFiles
from .flux.flavours import FLAVOURS, Flavour
from .flux.load import FluxShape
from .job import TrainJob
from .specs.flow import DENSITIES, FlowSpec
from .specs.no_effect import changed

NOISE_LEVELS = (*DENSITIES, "flow_sigmoid_scale", "flow_schedule_shift", "flow_schedule_auto_shift")
GUIDANCE = ("flux_guidance_value", "flux_guidance_mode")

log = logging.getLogger(__name__)


def flow_of(job: TrainJob) -> FlowSpec:
    """The job's flow, with what its flavour settles where the job has left it at its default."""
    return job.flow.model_copy(update=_settled(job))


def _settled(job: TrainJob) -> dict[str, Any]:
    """Schnell's own few noise levels, unless an assistant LoRA lets it learn all; the guidance that a base was trained with;
    padding hidden where a base never saw it."""
    flow, flavour = job.flow, FLAVOURS[job.base.model_flavour]
    settled: dict[str, Any] = {}
    if job.base.model_flavour == "schnell" and not (job.base.assistant_lora_path.strip() or changed(flow, NOISE_LEVELS)):
        settled["flux_fast_schedule"] = True
    if flavour.training_guidance is not None and not changed(flow, GUIDANCE):
        settled["flux_guidance_value"] = flavour.training_guidance
    if flavour.masks_text and not flow.flux_attention_masked_training:
        settled["flux_attention_masked_training"] = True
    return settled


def check_flavour(job: TrainJob, files: ModelFiles, shape: FluxShape) -> None:
    """JobError when the files or the job contradict the flavour; a warning for what is unusual."""
    name = job.base.model_flavour
    flavour = FLAVOURS[name]
    problems = [
        *_about_the_transformer(name, flavour, files.transformer, shape),
        *_about_the_encoders(files, shape),
        *_about_the_mask(name, flavour, job),
        *_about_references(name, flavour, job),
    ]
    if problems:
        raise JobError("\n".join(problems))
    for warning in _warnings(name, flavour, job):
        log.warning("%s", warning)


def _about_the_transformer(name: str, flavour: Flavour, path: Path, shape: FluxShape) -> list[str]:
    if flavour.guidance is None or flavour.guidance == shape.guidance:
        return []
    has = "has the guidance embedder" if shape.guidance else "has no guidance embedder"
    alike = [other for other, facts in FLAVOURS.items() if other != "pico" and facts.guidance in (shape.guidance, None)]
    return [
        f"model_flavour {name!r} does not fit {path}, which {has} and so looks like {' or '.join(alike)}; choose the flavour "
        "of the file, or the file of the flavour"
    ]


def _about_the_encoders(files: ModelFiles, shape: FluxShape) -> list[str]:
    """The VAE is opened too: a wrong one is told before anything is loaded."""
    open_vae(files.vae)
    clip_width = open_clip(files.clip_l).entries["embeddings.token_embedding.weight"].shape[1]
    t5_width = open_t5(files.t5).entries["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[1]
    problems = []
    if clip_width != shape.clip_width:
        whose = {1280: " (CLIP-G, of SDXL)", 1024: " (OpenCLIP-H, of Stable Diffusion 2)"}.get(clip_width, "")
        problems.append(
            f"{files.clip_l} gives vectors of {clip_width} numbers{whose}, and the transformer takes {shape.clip_width}; "
            "choose CLIP-L as clip_l_path"
        )
    if t5_width != shape.t5_width:
        problems.append(
            f"{files.t5} gives vectors of {t5_width} numbers, and the transformer takes {shape.t5_width}; choose T5 v1.1 XXL "
            "as t5_path"
        )
    return problems


def _about_the_mask(name: str, flavour: Flavour, job: TrainJob) -> list[str]:
    if flavour.masks_text is not False or not job.flow.flux_attention_masked_training:
        return []
    return [f"{name} was trained with the padding of the prompt in sight; set flow.flux_attention_masked_training to false"]


def _about_references(name: str, flavour: Flavour, job: TrainJob) -> list[str]:
    if flavour.takes_references:
        return []
    able = " or ".join(other for other, facts in FLAVOURS.items() if facts.takes_references and other != "pico")
    given = [(f"dataset {dataset_id!r} has reference_data_dir", "reference_data_dir") for dataset_id in _referring(job)]
    if job.validation.validation_reference_path.strip():
        given.append(("validation_reference_path is given", "it"))
    return [
        f"{what}, but {name} never learned to start from a picture; choose {able} as model_flavour, or clear {field}"
        for what, field in given
    ]


def _referring(job: TrainJob) -> list[str]:
    """The datasets with references."""
    return [dataset.id for dataset in job.datasets if dataset.reference_data_dir.strip() and not dataset.disabled]


def _warnings(name: str, flavour: Flavour, job: TrainJob) -> list[str]:
    validation, flow = job.validation, flow_of(job)
    warnings = [
        f"flow.{field} is {value!r} here, which {name} needs, since the job leaves it to the base"
        for field, value in _settled(job).items()
    ]
    fewest, most = flavour.num_steps
    if validation.validation_num_inference_steps and not fewest <= validation.validation_num_inference_steps <= most:
        usual = f"at least {fewest}" if most == 1000 else f"{fewest} to {most}"
        warnings.append(f"{name} makes its pictures in {usual} steps; this job has {validation.validation_num_inference_steps}")
    if flavour.sampler.guidance_real > 1 and 0 <= validation.validation_guidance_real <= 1:
        warnings.append(
            f"{name} needs real CFG ({flavour.sampler.guidance_real:g}) for its pictures; validation_guidance_real is "
            f"{validation.validation_guidance_real:g}"
        )
    wanted, mode = flavour.training_guidance, flow.flux_guidance_mode
    if wanted is not None and mode == "constant" and flow.flux_guidance_value != wanted:
        warnings.append(
            f"{name} was trained with flux_guidance_value {wanted:g}; {flow.flux_guidance_value:g} teaches it a little of what "
            "was taken out of it"
        )
    if name == "schnell" and not (flow.flux_fast_schedule or job.base.assistant_lora_path):
        warnings.append(
            "schnell loses its few-step ability when all noise levels are trained; leave the noise levels at their defaults, "
            "which turns flux_fast_schedule on, or give its training adapter as assistant_lora_path"
        )
    if name == "kontext" and not _referring(job):
        warnings.append(
            "kontext is trained here without reference pictures, as a text-to-image model; give reference_data_dir to train on "
            "pairs"
        )
    return warnings
