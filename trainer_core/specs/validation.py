"""The pictures and the figures that tell whether it works."""

from typing import Literal

from pydantic import Field, model_validator

from .no_effect import VALIDATION, refuse_idle
from .prompts import parse_library
from .spec import Spec


class ValidationSpec(Spec):
    """The pictures made before, during and after training, always with the same seed."""

    validation_prompts: tuple[str, ...] = Field(
        (),
        description="Prompts to picture, one a line. <token> stands for the trigger word. Empty: the first captions of the dataset.",
    )
    validation_negative_prompt: str = Field("", description="Negative prompt; used when validation_guidance_real is above 1.")
    validation_resolution: str = Field(
        "",
        description="WIDTHxHEIGHT in pixels, or several, such as 1024x1024, 1280x768; empty: a square of the base's home resolution, "
        "or what has its area and the aspect of the reference.",
    )
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

    user_prompt_library: str = Field(
        "",
        description="Named prompts as a JSON object: for each nickname its prompt, or an object with prompt, and with seed and negative_prompt if they are to differ.",
        json_schema_extra={"multiline": True},
    )
    validation_no_cfg_until_timestep: int = Field(
        0, ge=0, le=1000, description="So many sampler steps at the beginning go without real CFG."
    )
    validation_cfg_threshold: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description="Real CFG ends for good once both predictions are this similar (cosine); 1: never. On pico 0.88 saves 30 % of the predictions.",
    )
    validation_cfg_passes: Literal["auto", "one", "two"] = Field(
        "auto",
        description="Real CFG in one pass of twice the batch, or in two. auto: in one, until the card's memory does not do.",
    )

    validation_epoch_interval: int = Field(
        0, ge=0, le=1_000_000, description="Make pictures after every so many epochs too; 0: not by epochs."
    )
    num_held_out: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Set so many pictures of each dataset aside, always the same ones: they are not trained on, only measured.",
    )

    evaluation_type: Literal["none", "clip"] = Field(
        "none", description="clip: score each picture by how well it fits its prompt, and how near it is to the training set."
    )
    pretrained_evaluation_model_name_or_path: str = Field(
        "",
        description="The CLIP for evaluation_type clip: a folder of transformers' kind, or a hub id where downloads are allowed.",
    )
    eval_masked: bool = Field(
        False,
        description="Measure on what the masks leave, as the loss is trained. Off: on whole pictures, also where masks are trained with.",
    )
    validation_reference_path: str = Field(
        "",
        description="A picture, or a folder of them, that the prompts start from in turn, for kontext. Empty: references of the "
        "datasets, first those that are never trained on.",
    )

    @model_validator(mode="after")
    def _readable_sizes_and_prompts(self) -> "ValidationSpec":
        parse_sizes(self.validation_resolution)
        parse_library(self.user_prompt_library)
        return self

    @model_validator(mode="after")
    def _a_clip_to_score_with(self) -> "ValidationSpec":
        if self.evaluation_type == "clip" and not self.pretrained_evaluation_model_name_or_path.strip():
            raise ValueError(
                "evaluation_type 'clip' needs pretrained_evaluation_model_name_or_path: give the folder of a CLIP, such as "
                "clip-vit-large-patch14, or choose 'none'"
            )
        return self

    @model_validator(mode="after")
    def _nothing_idle(self) -> "ValidationSpec":
        refuse_idle(self, VALIDATION)
        return self


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """'1024x768, 512' -> [(1024, 768), (512, 512)], width and height in pixels; ValueError says what is wrong."""
    sizes = []
    for part in filter(None, text.lower().replace(" ", "").split(",")):
        edges = part.split("x")
        if len(edges) > 2 or not all(edge.isdigit() for edge in edges):
            raise ValueError(f"validation_resolution {part!r} is not a size; write it as WIDTHxHEIGHT, for instance 1024x768")
        width, height = int(edges[0]), int(edges[-1])
        if not (16 <= width <= 8192 and 16 <= height <= 8192):
            raise ValueError(f"validation_resolution {part!r}: both edges must be 16 to 8192 pixels")
        sizes.append((width, height))
    return sizes
