"""Settings that do nothing in this job, though each part is in order by itself: a warning for each, once, with the reason.

What a part alone can tell is an error (`specs/no_effect.py`); here it takes two parts, or the base's files.
"""

import logging

from .flux.load import FluxShape
from .job import TrainJob
from .specs.no_effect import changed
from .validation.sample import SamplerSettings

log = logging.getLogger(__name__)

GUIDANCE = ("flux_guidance_value", "flux_guidance_mode", "flux_guidance_min", "flux_guidance_max")


def warn_of_idle(job: TrainJob, shape: FluxShape, sampler: SamplerSettings, num_prompts: int) -> None:
    """Log what has no effect here. Nothing is said of a setting at its default."""
    for line in [*_about_masks(job), *_about_guidance(job, shape), *_about_pictures(job, sampler, num_prompts)]:
        log.warning("%s", line)


def _about_masks(job: TrainJob) -> list[str]:
    if any(dataset.mask_data_dir for dataset in job.datasets):
        return []
    return [
        f"routes.{number}.keep_masked has no effect: no dataset has mask_data_dir"
        for number, route in enumerate(job.routes)
        if changed(route, ["keep_masked"])
    ]


def _about_guidance(job: TrainJob, shape: FluxShape) -> list[str]:
    if shape.guidance:
        return []
    names = [f"flow.{name}" for name in changed(job.flow, GUIDANCE)]
    names += [f"validation.{name}" for name in changed(job.validation, ["validation_guidance"])]
    return [f"{name} has no effect: this base has no guidance embedder" for name in names]


def _about_pictures(job: TrainJob, sampler: SamplerSettings, num_prompts: int) -> list[str]:
    lines = []
    if not num_prompts and changed(job.training, ["ema_validation"]):
        lines.append("training.ema_validation has no effect: validation.num_validation_images is 0, so there are no pictures")
    if num_prompts and sampler.guidance_real <= 1 and changed(job.validation, ["validation_negative_prompt"]):
        lines.append(
            "validation.validation_negative_prompt has no effect: real CFG is off with this base, unless "
            "validation.validation_guidance_real is above 1"
        )
    return lines
