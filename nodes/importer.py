"""ImportSimpleTunerConfig: a SimpleTuner configuration as everything that TrainLoRA takes, with a report of every option.

It reads files of the user's and writes none; what it makes is what `flux-lora import-simpletuner` makes.
"""

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer_core.file_names import expanded
from ..trainer_core.graph_parts import AS_CONFIGURED, configuration, imported, read_by_import
from ..trainer_core.run_dir import dataset_digest
from .permissions import check_readable, is_readable
from .widgets import (
    CATEGORY,
    FlowConfigWire,
    FluxTrainModel,
    LoraConfigWire,
    OptimizerConfigWire,
    PublishingConfigWire,
    TrainDataset,
    TrainingOptionsWire,
    TreadRoutes,
    ValidationConfigWire,
    choices,
    completed,
    text,
)

WIRES = (
    FluxTrainModel,
    TrainDataset,
    LoraConfigWire,
    TreadRoutes,
    OptimizerConfigWire,
    FlowConfigWire,
    ValidationConfigWire,
    TrainingOptionsWire,
)


class ImportSimpleTunerConfig(io.ComfyNode):
    """The paths of a configuration in; all specs out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImportSimpleTunerConfig",
            display_name="Import SimpleTuner Config",
            category=CATEGORY,
            description="Reads a SimpleTuner configuration and says what became of each of its options.",
            inputs=[
                text("config", "config.json, config.toml or config.env of SimpleTuner, or the folder that it is in."),
                text("datasets", "multidatabackend.json; empty: the one that the configuration names."),
                choices("base", [AS_CONFIGURED, "pico"], "Which base: the one that is configured, or pico, to try it."),
                _switch("allow_download", "The base may be downloaded from the hub when the training starts."),
                _switch("skip_refused", "Go on without what is refused; the report names it."),
            ],
            outputs=[
                *(wire.Output(display_name=wire.io_type) for wire in WIRES),
                io.Int.Output(display_name="steps"),
                io.Int.Output(display_name="seed"),
                io.String.Output(display_name="report"),
                io.String.Output(display_name="name"),
                PublishingConfigWire.Output(display_name=PublishingConfigWire.io_type),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **values: Any) -> str | float:
        """Changes when a file of the configuration does, or a picture; a path that comes along a wire is not known here."""
        values = completed(cls, values)
        if values["config"] is None or values["datasets"] is None:
            return float("nan")
        if not all(map(is_readable, _paths(values["config"], values["datasets"]))):
            return ""  # and `execute` refuses it
        return dataset_digest(*read_by_import(values, is_readable))

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        values = completed(cls, values)
        for path in _paths(values["config"], values["datasets"]):
            check_readable(path, "the configuration", "ImportSimpleTunerConfig")
        return io.NodeOutput(*imported(values, is_readable))


def _paths(config: str, datasets: str) -> list[Path]:
    """Those of the two that are given."""
    meant = ((configuration, config), (expanded, datasets))
    return [path_of(text) for path_of, text in meant if text.strip()]


def _switch(name: str, tooltip: str) -> io.Input:
    return io.Boolean.Input(name, default=False, optional=True, tooltip=tooltip)
