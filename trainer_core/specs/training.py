"""Length, batch, memory and saving."""

from typing import Literal

from pydantic import Field, model_validator

from .no_effect import TRAINING, refuse_idle
from .spec import Spec


class TrainingSpec(Spec):
    """Length, batch, memory and saving."""

    max_train_steps: int = Field(
        1000, ge=0, le=10_000_000, description="Optimiser steps; 0: as many as num_train_epochs needs."
    )
    train_batch_size: int = Field(1, ge=1, le=1024, description="Samples in one forward pass.")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=1024, description="Forward passes per optimiser step; equals a batch that many times larger."
    )
    gradient_checkpointing: bool = Field(
        True, description="Recompute activations in the backward pass: much less memory, about a third more time."
    )
    checkpoint_step_interval: int = Field(
        250, ge=0, le=1_000_000, description="Save LoRA and state every so many steps; 0: only at the end and on stop."
    )
    checkpoints_total_limit: int = Field(3, ge=1, le=1000, description="How many of the newest checkpoints are kept.")
    seed: int = Field(42, ge=0, le=2**63 - 1, description="Seed of everything random in training.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: the first CUDA (or ROCm) card if there is one, else the CPU."
    )
    num_train_epochs: int = Field(
        0, ge=0, le=1_000_000, description="Passes over all pictures, repeats included; 0: as many as max_train_steps are."
    )
    gradient_checkpointing_interval: int = Field(
        0,
        ge=0,
        le=57,
        description="With gradient_checkpointing, every n-th block is recomputed: 2 is faster, for more memory. 0: as few as "
        "the memory there is asks for; all with blocks_to_swap or activation offloading.",
    )
    log_interval: int = Field(
        10, ge=1, le=10_000, description="Steps that each report of loss by noise level, speed and memory sums up."
    )
    use_ema: bool = Field(
        False, description="Also keep a running average of the adapter (EMA), saved beside it: smoother, and slower to follow."
    )
    ema_decay: float = Field(0.995, ge=0.0, lt=1.0, description="Memory of the running average; its first steps follow faster.")
    ema_update_interval: int = Field(1, ge=1, le=10_000, description="Steps between two updates of the running average.")
    ema_validation: Literal["none", "ema_only", "comparison"] = Field(
        "none",
        description="Pictures by the adapter alone (none), by its running average instead (ema_only), or by both (comparison).",
    )

    enable_activation_offloading: bool = Field(
        False,
        description="With gradient_checkpointing, what each block keeps for the backward pass waits in RAM: less card memory, slower.",
    )
    skip_memory_check: bool = Field(
        False, description="Start even where the plan says that the run does not fit into the memory there is."
    )
    data_backend_sampling: Literal["auto-weighting", "uniform"] = Field(
        "auto-weighting",
        description="How the datasets of an epoch mix. auto-weighting: all the way through, each by its size and probability. "
        "uniform: by probability alone, so that small ones are through early.",
    )
    cache_size_limit: float = Field(
        0.0,
        ge=0.0,
        le=1_000_000.0,
        description="Gigabytes that the cache of encoded pictures and captions may take; what was used longest ago goes first. "
        "0: no limit.",
    )
    report_to: Literal["none", "tensorboard", "wandb", "all"] = Field(
        "none",
        description="Also keep curves and pictures for TensorBoard or Weights & Biases, in the run folder. Nothing is sent unless the "
        "environment says WANDB_MODE=online.",
    )
    tracker_project_name: str = Field("flux-lora", min_length=1, description="Project of the run in Weights & Biases.")
    num_devices: int = Field(
        1,
        ge=0,
        le=64,
        description="Cards of this machine that share the samples of each step, which trains the same, sooner; 0: all there are.",
    )
    torch_compile: Literal["off", "auto", "on"] = Field(
        "off",
        description="Compile the model's blocks: faster steps after a wait of about a minute before the first. auto: where the run is "
        "long enough to gain by it and a compiler is there.",
    )

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingSpec":
        if self.max_train_steps and self.num_train_epochs:
            raise ValueError(
                f"max_train_steps {self.max_train_steps} and num_train_epochs {self.num_train_epochs} both say how long; set one to 0"
            )
        if not self.max_train_steps and not self.num_train_epochs:
            raise ValueError("max_train_steps and num_train_epochs are both 0; give one")
        return self

    @model_validator(mode="after")
    def _nothing_idle(self) -> "TrainingSpec":
        refuse_idle(self, TRAINING)
        return self
