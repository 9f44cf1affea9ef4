"""Which noise levels are trained, what the model is told, and how its error is counted."""

from typing import Literal

from pydantic import Field, model_validator

from .no_effect import FLOW, refuse_idle
from .spec import Spec

DENSITIES = ("flow_custom_timesteps", "flux_fast_schedule", "flow_use_uniform_schedule", "flow_use_beta_schedule")


class FlowSpec(Spec):
    """Which noise levels are trained, what guidance the model is told, and how its error is counted."""

    flow_sigmoid_scale: float = Field(
        1.0, gt=0.0, le=10.0, description="Spread of the noise levels: sigma = sigmoid(scale * normal). The default density."
    )
    flow_schedule_shift: float = Field(
        0.0,
        ge=0.0,
        le=100.0,
        description="Shift of the noise levels: above 1 trains composition more, below 1 detail; 0: none.",
    )
    flux_guidance_value: float = Field(
        1.0,
        ge=0.0,
        le=100.0,
        description="Guidance fed to the model in training, where it has the embedder. 1 keeps the distillation of dev.",
    )
    caption_dropout_probability: float = Field(
        0.0, ge=0.0, le=1.0, description="Share of the samples whose caption is replaced by the empty one."
    )
    flow_schedule_auto_shift: bool = Field(
        False, description="Shift by the number of image tokens as FLUX.1 dev samples: 1.88 at 512 px, 3.16 at 1024 px."
    )
    flow_use_uniform_schedule: bool = Field(False, description="Draw every noise level alike, instead of by the sigmoid.")
    flow_use_beta_schedule: bool = Field(False, description="Draw noise levels of a Beta density, instead of by the sigmoid.")
    flow_beta_schedule_alpha: float = Field(2.0, gt=0.0, le=100.0, description="Beta density: larger draws nearer to noise.")
    flow_beta_schedule_beta: float = Field(2.0, gt=0.0, le=100.0, description="Beta density: larger draws nearer to the image.")
    flow_custom_timesteps: tuple[float, ...] = Field(
        (), description="Noise levels to pick from, one a line, each from 0 (image) to 1 (noise); never shifted."
    )
    flux_fast_schedule: bool = Field(
        False, description="Pick from schnell's few noise levels, mostly pure noise; never shifted."
    )
    flux_guidance_mode: Literal["constant", "random-range"] = Field(
        "constant",
        description="constant: flux_guidance_value. random-range: anew for each sample, between flux_guidance_min and flux_guidance_max.",
    )
    flux_guidance_min: float = Field(0.0, ge=0.0, le=100.0, description="Lowest guidance of random-range.")
    flux_guidance_max: float = Field(4.0, ge=0.0, le=100.0, description="Highest guidance of random-range.")
    loss_type: Literal["l2", "huber", "smooth_l1"] = Field(
        "l2",
        description="How errors count: l2 by their square; huber and smooth_l1 let large ones, such as of odd pictures, count less.",
    )
    huber_schedule: Literal["snr", "exponential", "constant"] = Field(
        "snr",
        description="How huber_c depends on the noise level: snr and exponential are near l2 at the image and reach huber_c at noise.",
    )
    huber_c: float = Field(0.1, gt=0.0, le=100.0, description="Error at which huber and smooth_l1 turn from square to linear.")
    input_perturbation: float = Field(
        0.0, ge=0.0, le=1.0, description="Extra noise on the model's input alone, against overfitting; 0.1 is usual, 0: none."
    )
    input_perturbation_steps: int = Field(
        0, ge=0, le=10_000_000, description="Steps over which input_perturbation falls to 0; 0: it stays."
    )
    flux_attention_masked_training: bool = Field(
        False,
        description="Hide the padding of the T5 prompt from attention; for bases that were trained so, such as LibreFLUX.",
    )
    t5_mask_mode: Literal["mask", "additive"] = Field(
        "mask",
        description="mask: padding is really hidden. additive: SimpleTuner's old way, words merely count a little more than padding.",
    )

    @model_validator(mode="after")
    def _one_density(self) -> "FlowSpec":
        on = [name for name in DENSITIES if getattr(self, name)]
        if len(on) > 1:
            raise ValueError(f"{' and '.join(on)} exclude each other; keep one")
        shifts = [name for name in ("flow_schedule_shift", "flow_schedule_auto_shift") if getattr(self, name)]
        if len(shifts) > 1:
            raise ValueError("flow_schedule_shift and flow_schedule_auto_shift exclude each other; set the shift to 0")
        wrong = [sigma for sigma in self.flow_custom_timesteps if not 0 <= sigma <= 1]
        if wrong:
            raise ValueError(f"flow_custom_timesteps are noise levels from 0 to 1; got {wrong[0]}")
        if self.flux_guidance_min > self.flux_guidance_max:
            raise ValueError("flux_guidance_min is above flux_guidance_max; exchange them")
        return self

    @model_validator(mode="after")
    def _nothing_idle(self) -> "FlowSpec":
        refuse_idle(self, FLOW)
        return self
