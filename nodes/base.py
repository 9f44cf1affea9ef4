"""LoadFluxForTraining: which FLUX to train on, by the names of files in ComfyUI's own model folders.

It loads nothing. A MODEL socket would keep 24 GB of weights in ComfyUI's cache while the child process loads its own; file
names cost nothing and say exactly what was trained on.
"""

from typing import Any

from comfy_api.latest import io

from ..trainer_core import presets
from ..trainer_core.errors import JobError
from ..trainer_core.graph_parts import FILES, NO_FILE, base_of
from ..trainer_core.specs.base import BaseModelSpec
from .model_files import ComfyPlaces, list_files
from .widgets import CATEGORY, FluxTrainModel, choices, completed, text, widget

CHECKPOINTS = "checkpoints"
OTHER_FILES = "Files that lie elsewhere, one a line, such as: transformer = D:/models/flux1-dev.safetensors."
OFTEN = ("base_model_precision", "text_encoder_2_precision", "blocks_to_swap")  # the widgets before and after the files, in
SELDOM = (  # the order of saved workflows: append, never insert
    "mixed_precision",
    "modulation_offload",
    "offload_during_startup",
    "quantize_via",
    "text_encoder_1_precision",
    "vae_batch_size",
    "vae_enable_tiling",
    "vae_enable_slicing",
    "attention_mechanism",
    "pretrained_model_name_or_path",
    "allow_download",
)
LATE = ("assistant_lora_strength", "assistant_lora_inference_strength")
LATEST = "quantized_matmul"


class LoadFluxForTraining(io.ComfyNode):
    """File names in, BaseModelSpec out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadFluxForTraining",
            display_name="Load FLUX for Training",
            category=CATEGORY,
            description="The FLUX.1 to train on. pico ships with the pack; for the others choose files. Loads nothing yet.",
            inputs=[
                widget(BaseModelSpec, "model_flavour"),
                choices("card", [presets.CUSTOM, *presets.CARDS], _presets_told()),
                *(_files(name, FILES[name]) for name in ("transformer", "vae", "clip_l", "t5")),
                *(widget(BaseModelSpec, name) for name in OFTEN),
                _files("checkpoint", CHECKPOINTS, "pretrained_model_name_or_path"),
                *(widget(BaseModelSpec, name) for name in SELDOM),
                _files("assistant_lora", FILES["assistant_lora"]),
                *(widget(BaseModelSpec, name) for name in LATE),
                text("other_files", OTHER_FILES, multiline=True),
                widget(BaseModelSpec, LATEST),
            ],
            outputs=[
                FluxTrainModel.Output(display_name="FLUX_TRAIN_MODEL"),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        transformer: str = NO_FILE,
        vae: str = NO_FILE,
        clip_l: str = NO_FILE,
        t5: str = NO_FILE,
        assistant_lora: str = NO_FILE,
        checkpoint: str = NO_FILE,
    ) -> bool | str:
        """Says where a file belongs that a shared workflow names and that is not here; ComfyUI would only say that it is none
        of the choices."""
        chosen = (transformer, vae, clip_l, t5, assistant_lora, checkpoint)
        try:
            for folder, name in zip((*FILES.values(), CHECKPOINTS), chosen, strict=True):
                if name not in (None, NO_FILE):
                    ComfyPlaces().model_file(folder, name)
        except JobError as missing:
            return str(missing)
        return True

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        values = completed(cls, values)
        return io.NodeOutput(base_of(values, ComfyPlaces()), presets.describe(values["card"]))


def _files(name: str, folder: str, field: str = "") -> io.Input:
    """A combo of the files in one of ComfyUI's model folders."""
    told = BaseModelSpec.model_fields[field or name + "_path"].description
    return choices(name, list_files(folder), f"{told} From ComfyUI's {folder} folder.")


def _presets_told() -> str:
    told = [f"{card}: {preset.settings()} ({preset.pixels} px, batch {preset.batch})" for card, preset in presets.CARDS.items()]
    return f"Sets what a card of this size needs, where it stands at its default. custom: nothing. {'; '.join(told)}."
