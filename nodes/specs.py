"""The nodes that are nothing but settings: widgets in, one spec of the job out."""

from typing import Any

from comfy_api.latest import io

from ..trainer_core.graph_parts import spec_of
from ..trainer_core.specs.adapter import LoraSpec
from ..trainer_core.specs.flow import FlowSpec
from ..trainer_core.specs.optimizer import OptimizerSpec
from ..trainer_core.specs.publishing import PublishingSpec
from ..trainer_core.specs.spec import Spec
from ..trainer_core.specs.training import TrainingSpec
from ..trainer_core.specs.tread import TreadRoute
from ..trainer_core.specs.validation import ValidationSpec
from .permissions import digest_of
from .widgets import (
    CATEGORY,
    FlowConfigWire,
    LoraConfigWire,
    OptimizerConfigWire,
    PublishingConfigWire,
    TrainingOptionsWire,
    TreadRoutes,
    ValidationConfigWire,
    completed,
    read_spec,
    widgets,
)

ON_TRAIN_NODE = frozenset({"max_train_steps", "seed", "device"})  # TrainLoRA asks for the first two and knows the third


class LoRAConfig(io.ComfyNode):
    """LoraSpec."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("LoRAConfig", "LoRA Config", LoraSpec, LoraConfigWire)

    @classmethod
    def fingerprint_inputs(cls, init_lora: str | None = "", **rest: Any) -> str:
        """Changes when the LoRA to start from does."""
        return digest_of(init_lora)

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(spec_of("LoRAConfig", completed(cls, values)))


class OptimizerConfig(io.ComfyNode):
    """OptimizerSpec."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("OptimizerConfig", "Optimizer Config", OptimizerSpec, OptimizerConfigWire)

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(spec_of("OptimizerConfig", completed(cls, values)))


class FlowScheduleConfig(io.ComfyNode):
    """FlowSpec."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("FlowScheduleConfig", "Flow Schedule Config", FlowSpec, FlowConfigWire)

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(spec_of("FlowScheduleConfig", completed(cls, values)))


class ValidationConfig(io.ComfyNode):
    """ValidationSpec."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("ValidationConfig", "Validation Config", ValidationSpec, ValidationConfigWire)

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(spec_of("ValidationConfig", completed(cls, values)))


class TrainingOptions(io.ComfyNode):
    """TrainingSpec, but for what TrainLoRA itself asks for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("TrainingOptions", "Training Options", TrainingSpec, TrainingOptionsWire, ON_TRAIN_NODE)

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(spec_of("TrainingOptions", completed(cls, values)))


class PublishingConfig(io.ComfyNode):
    """PublishingSpec."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("PublishingConfig", "Publishing Config", PublishingSpec, PublishingConfigWire)

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(spec_of("PublishingConfig", completed(cls, values)))


class TREADRoute(io.ComfyNode):
    """TreadRoute; several are chained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = _schema("TREADRoute", "TREAD Route", TreadRoute, TreadRoutes)
        schema.inputs.append(TreadRoutes.Input("previous_routes", optional=True, tooltip="Routes that this one is added to."))
        return schema

    @classmethod
    def execute(cls, previous_routes: tuple[TreadRoute, ...] = (), **values: Any) -> io.NodeOutput:
        return io.NodeOutput(read_spec("routes", [*previous_routes, completed(cls, values)], "TREADRoute"))


def _schema(node_id: str, title: str, spec: type[Spec], wire: Any, leave_out: frozenset[str] = frozenset()) -> io.Schema:
    """The schema of a node whose widgets are the fields of a spec."""
    return io.Schema(
        node_id=node_id,
        display_name=title,
        category=CATEGORY,
        description=spec.__doc__ or "",
        inputs=widgets(spec, leave_out=leave_out),
        outputs=[wire.Output(display_name=wire.io_type)],
    )
