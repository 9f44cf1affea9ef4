"""The pictures and the figures that tell whether it works."""

from pydantic import Field, model_validator

from .no_effect import VALIDATION, refuse_idle
from .spec import Spec


class ValidationSpec(Spec):
    """The pictures made before, during and after training, always with the same seed."""

    validation_prompts: tuple[str, ...] = Field(
        (), description="Prompts to picture, one a line. Empty: the first captions of the dataset."
    )
    validation_negative_prompt: str = Field("", description="Negative prompt; used when validation_guidance_real is above 1.")
    validation_resolution: str = Field("", description="WIDTHxHEIGHT in pixels; empty: a square of the base's home resolution.")
    validation_num_inference_steps: int = Field(
        0, ge=0, le=1000, description="Sampler steps; 0: what suits the base (20; schnell 4)."
    )
    validation_guidance: float = Field(-1.0, ge=-1.0, le=100.0, description="Embedded guidance; -1: what suits the base (3.5).")
    validation_guidance_real: float = Field(
        -1.0, ge=-1.0, le=100.0, description="Real CFG, on above 1; -1: what suits the base (off; pico 3)."
    )
    validation_seed: int = Field(0, ge=0, le=2**63 - 1, description="Seed of the pictures' noise.")
    validation_step_interval: int = Field(
        0, ge=0, le=1_000_000, description="Make pictures every so many steps; 0: only before and after."
    )
    num_validation_images: int = Field(
        4,
        ge=0,
        le=1000,
        description="How many captions to picture when validation_prompts is empty; 0: no pictures at all.",
    )
    eval_steps_interval: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Measure the loss on the eval datasets every so many steps, and at the start and the end; 0: never.",
    )
    num_eval_images: int = Field(
        16, ge=1, le=100_000, description="How many pictures of each eval dataset are measured, evenly spread over it."
    )
    eval_timesteps: int = Field(
        4, ge=1, le=100, description="At how many noise levels each is measured: the middles of as many equal parts of 0 to 1."
    )

    @model_validator(mode="after")
    def _readable_size(self) -> "ValidationSpec":
        if self.validation_resolution:
            parse_size(self.validation_resolution)
        return self

    @model_validator(mode="after")
    def _nothing_idle(self) -> "ValidationSpec":
        refuse_idle(self, VALIDATION)
        return self


def parse_size(text: str) -> tuple[int, int]:
    """'1024x768' -> (1024, 768), width and height in pixels; ValueError says what is wrong."""
    parts = text.lower().replace(" ", "").split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise ValueError(f"validation_resolution {text!r} is not a size; write it as WIDTHxHEIGHT, for instance 1024x768")
    width, height = int(parts[0]), int(parts[1])
    if min(width, height) < 16 or width % 16 or height % 16:
        raise ValueError(f"validation_resolution {text!r}: both edges must be multiples of 16 and at least 16")
    return width, height
