"""How the adapter's weights move."""

from typing import Literal

from pydantic import Field, model_validator

from .no_effect import OPTIMIZER, refuse_idle
from .spec import Spec

OptimizerName = Literal[
    "adamw",
    "adamw_bf16",
    "optimi-adamw",
    "optimi-stableadamw",
    "optimi-lion",
    "bnb-adamw8bit",
    "bnb-adamw8bit-paged",
    "bnb-lion8bit",
    "bnb-lion8bit-paged",
    "bnb-ademamix8bit",
    "prodigy",
    "adamw_schedulefree",
]


class OptimizerSpec(Spec):
    """How the adapter's weights move."""

    optimizer: OptimizerName = Field(
        "adamw",
        description="adamw: float32 states. The 8-bit ones (bnb-) need less memory, paged ones can spill to RAM; prodigy finds its own learning rate.",
    )
    learning_rate: float = Field(
        1e-4, gt=0.0, le=1.0, description="Step size. For a FLUX LoRA 1e-4 is a sound start, 1e-3 burns."
    )
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "sine"
    ] = Field("constant_with_warmup", description="Course of the learning rate from the warm-up to the last step of the run.")
    lr_warmup_steps: int = Field(
        0, ge=0, le=100_000, description="Optimiser steps over which the learning rate rises from zero."
    )
    adam_beta1: float = Field(-1.0, ge=-1.0, lt=1.0, description="Memory of the gradient's mean; -1: what suits the optimiser.")
    adam_beta2: float = Field(
        -1.0, ge=-1.0, lt=1.0, description="Memory of the gradient's square; -1: what suits the optimiser."
    )
    adam_weight_decay: float = Field(
        -1.0, ge=-1.0, le=1.0, description="Pull of the weights towards zero; -1: what suits the optimiser."
    )
    max_grad_norm: float = Field(1.0, gt=0.0, le=1e6, description="Largest gradient; see grad_clip_method.")
    grad_clip_method: Literal["norm", "value"] = Field(
        "norm", description="norm: the whole gradient is scaled down to length max_grad_norm. value: each number is cut at it."
    )
    lr_end: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Learning rate at the end of linear, cosine and polynomial, and at the low points of the others.",
    )
    lr_power: float = Field(1.0, gt=0.0, le=10.0, description="Power of the polynomial course; 1 is linear.")
    lr_num_cycles: int = Field(
        1, ge=1, le=1000, description="How often cosine_with_restarts starts again, or sine rises, over the run."
    )
    optimizer_config: str = Field(
        "", description="More arguments of the optimiser, such as eps=1e-6,d_coef=0.5; an unknown one is an error."
    )

    @model_validator(mode="after")
    def _betas_in_range(self) -> "OptimizerSpec":
        for name in ("adam_beta1", "adam_beta2", "adam_weight_decay"):
            value = getattr(self, name)
            if value < 0 and value != -1:
                raise ValueError(f"{name} is {value}; it is at least 0, or -1 for what suits the optimiser")
        return self

    @model_validator(mode="after")
    def _ends_below_its_start(self) -> "OptimizerSpec":
        if self.lr_end > self.learning_rate:
            raise ValueError(f"lr_end {self.lr_end} is above learning_rate {self.learning_rate}; lower it")
        return self

    @model_validator(mode="after")
    def _nothing_idle(self) -> "OptimizerSpec":
        refuse_idle(self, OPTIMIZER)
        return self
