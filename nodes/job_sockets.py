"""What the nodes that take a whole job have in common: the sockets of its parts, and the device that ComfyUI uses."""

from comfy_api.latest import io

from .widgets import (
    FlowConfigWire,
    FluxTrainModel,
    LoraConfigWire,
    OptimizerConfigWire,
    PublishingConfigWire,
    TrainDataset,
    TrainingOptionsWire,
    TreadRoutes,
    ValidationConfigWire,
)


def needed_sockets() -> list[io.Input]:
    """The parts that have no defaults."""
    return [
        FluxTrainModel.Input("model", tooltip="The base, from Load FLUX for Training."),
        TrainDataset.Input("dataset", tooltip="The pictures, from Dataset Bucket."),
    ]


def optional_sockets() -> list[io.Input]:
    """The parts that have."""
    return [
        LoraConfigWire.Input("lora", optional=True, tooltip="From LoRA Config; without it its defaults."),
        TreadRoutes.Input("routes", optional=True, tooltip="From TREAD Route; without it no token skips a layer."),
        OptimizerConfigWire.Input("optimizer", optional=True, tooltip="From Optimizer Config, or its defaults."),
        FlowConfigWire.Input("flow", optional=True, tooltip="From Flow Schedule Config, or its defaults."),
        ValidationConfigWire.Input("validation", optional=True, tooltip="From Validation Config, or its defaults."),
        TrainingOptionsWire.Input("options", optional=True, tooltip="From Training Options, or its defaults."),
        PublishingConfigWire.Input("publishing", optional=True, tooltip="From Publishing Config; without it nothing is sent."),
    ]


def comfy_device() -> str:
    """`training.device` as ComfyUI was started."""
    import comfy.model_management as management

    return "cpu" if management.get_torch_device().type == "cpu" else "cuda"
