"""The job: the only configuration there is.

A `TrainJob` is a frozen tree of plain values. JSON in, JSON out; it is written into the run folder before the first step and
reproduces the run alone. Each field, in `specs/`, states its default, meaning, unit and range there and nowhere else: node
widgets, their tooltips, and error messages are made from these fields. Names are those of SimpleTuner's FLUX options where it
has one.

`job_file.py` reads and writes it and says what is wrong with one. No torch here: ComfyUI's nodes import this file.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from .file_names import is_device
from .specs.adapter import LoraSpec
from .specs.base import BaseModelSpec
from .specs.dataset import DatasetSpec
from .specs.flow import FlowSpec
from .specs.optimizer import OptimizerSpec
from .specs.publishing import PublishingSpec
from .specs.spec import Spec
from .specs.training import TrainingSpec
from .specs.tread import TreadRoute
from .specs.validation import ValidationSpec

JOB_VERSION = 1


class TrainJob(Spec):
    """Everything that one run needs to know."""

    version: Literal[1] = Field(JOB_VERSION, description="Version of this format.")
    name: str = Field(
        "my-lora",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$",
        description="Name of the LoRA: letters, digits, dot, dash, underscore.",
    )
    base: BaseModelSpec = BaseModelSpec()
    datasets: Annotated[tuple[DatasetSpec, ...], Field(min_length=1)]
    lora: LoraSpec = LoraSpec()
    routes: tuple[TreadRoute, ...] = ()
    optimizer: OptimizerSpec = OptimizerSpec()
    flow: FlowSpec = FlowSpec()
    validation: ValidationSpec = ValidationSpec()
    training: TrainingSpec = TrainingSpec()
    publishing: PublishingSpec = PublishingSpec()
    metadata: dict[str, str] = Field(
        {},
        description="Entries for the LoRA file's header, such as ComfyUI's workflow. They do not make it another run.",
    )

    @field_validator("name")
    @classmethod
    def _is_no_device(cls, name: str) -> str:
        if is_device(name):
            raise ValueError("is the name of a device on Windows; choose another")
        return name

    @model_validator(mode="after")
    def _distinct_datasets(self) -> "TrainJob":
        ids = [dataset.id for dataset in self.datasets]
        repeated = sorted({name for name in ids if ids.count(name) > 1})
        if repeated:
            raise ValueError(f"datasets: the id {', '.join(map(repr, repeated))} is used twice; give each dataset its own")
        return self

    @model_validator(mode="after")
    def _swapped_blocks_are_recomputed(self) -> "TrainJob":
        recomputed = self.training.gradient_checkpointing and self.training.gradient_checkpointing_interval <= 1
        if self.base.blocks_to_swap and not recomputed:
            raise ValueError(
                "base.blocks_to_swap needs training.gradient_checkpointing with interval 0 or 1: a block that is not "
                "recomputed keeps its weights on the card until its backward pass, and nothing would be saved"
            )
        return self

    @model_validator(mode="after")
    def _compiled_blocks_stay(self) -> "TrainJob":
        if self.base.blocks_to_swap and self.training.torch_compile == "on":
            raise ValueError(
                "training.torch_compile 'on' does not go with base.blocks_to_swap: blocks whose weights come and go cannot be "
                "compiled; set one of them to its default"
            )
        return self

    @model_validator(mode="after")
    def _something_to_train_on(self) -> "TrainJob":
        kinds = {dataset.dataset_type for dataset in self.datasets}
        if "image" not in kinds:
            raise ValueError("datasets: all are for evaluation; give one with dataset_type 'image' to train on")
        is_measured = "eval" in kinds or self.validation.num_held_out > 0
        if is_measured != bool(self.validation.eval_steps_interval):
            raise ValueError(
                "validation.eval_steps_interval goes together with what is measured, a dataset with dataset_type 'eval' or "
                "validation.num_held_out: give both or neither"
            )
        return self
