"""Settings that do nothing in this job, though each part is in order by itself: a warning, once, with the reason.

What a part alone can tell is an error (`specs/no_effect.py`); here it takes two parts, or the base's files. And who switches
the pictures off for one run shall not have to clear how they would be made.
"""

import logging

from .flux.load import FluxShape
from .job import TrainJob
from .specs.no_effect import changed
from .validation.sample import SamplerSettings

log = logging.getLogger(__name__)

PICTURES = (
    "validation_negative_prompt",
    "validation_resolution",
    "validation_reference_path",
    "validation_num_inference_steps",
    "validation_guidance",
    "validation_guidance_real",
    "validation_no_cfg_until_timestep",
    "validation_cfg_threshold",
    "validation_cfg_passes",
    "evaluation_type",
    "validation_seed",
    "validation_step_interval",
    "validation_epoch_interval",
)
GUIDANCE = ("flux_guidance_value", "flux_guidance_mode", "flux_guidance_min", "flux_guidance_max")


def warn_of_idle(job: TrainJob, shape: FluxShape, sampler: SamplerSettings, num_prompts: int) -> None:
    """Log what has no effect here. Nothing is said of a setting at its default."""
    lines = [*_about_masks(job), *_about_eval_masks(job), *_about_guidance(job, shape, num_prompts)]
    for line in [*lines, *_about_pictures(job, sampler, num_prompts)]:
        log.warning("%s", line)


def _about_masks(job: TrainJob) -> list[str]:
    if any(dataset.mask_data_dir or dataset.alpha_is_mask for dataset in job.datasets):
        return []
    names = [f"routes.{number}.keep_masked" for number, route in enumerate(job.routes) if changed(route, ["keep_masked"])]
    names += [f"validation.{name}" for name in changed(job.validation, ["eval_masked"])]
    return [f"{name} has no effect: no dataset has masks" for name in names]


def _about_eval_masks(job: TrainJob) -> list[str]:
    if job.validation.eval_masked:
        return []
    return [
        f"datasets.{number}.{name} has no effect: the dataset is for evaluation, which is of whole pictures unless "
        "validation.eval_masked is on"
        for number, dataset in enumerate(job.datasets)
        for name in (changed(dataset, ["mask_data_dir", "alpha_is_mask"]) if dataset.dataset_type == "eval" else ())
    ]


def _about_guidance(job: TrainJob, shape: FluxShape, num_prompts: int) -> list[str]:
    if shape.guidance:
        return []
    names = [f"flow.{name}" for name in changed(job.flow, GUIDANCE)]
    if num_prompts:
        names += [f"validation.{name}" for name in changed(job.validation, ["validation_guidance"])]
    return [f"{name} has no effect: this base has no guidance embedder" for name in names]


def _about_pictures(job: TrainJob, sampler: SamplerSettings, num_prompts: int) -> list[str]:
    if num_prompts:
        if sampler.guidance_real > 1 or not changed(job.validation, ["validation_negative_prompt"]):
            return []
        return [
            "validation.validation_negative_prompt has no effect: real CFG is off with this base, unless "
            "validation.validation_guidance_real is above 1"
        ]
    names = [f"validation.{name}" for name in changed(job.validation, PICTURES)]
    if job.validation.eval_steps_interval and "validation.validation_seed" in names:
        names.remove("validation.validation_seed")  # evaluation draws by it too
    names += [f"training.{name}" for name in changed(job.training, ["ema_validation"])]
    return [f"{name} has no effect: validation.num_validation_images is 0, so there are no pictures" for name in names]
