"""LoadFluxForTraining: which FLUX to train on, by the names of files in ComfyUI's own model folders.

It loads nothing. A MODEL socket would keep 24 GB of weights in ComfyUI's cache while the child process loads its own; file
names cost nothing and say exactly what was trained on.
"""

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..trainer_core.errors import JobError
from ..trainer_core.specs.base import BaseModelSpec
from .widgets import CATEGORY, FluxTrainModel, read_spec, widget

NO_FILE = "none"
GGUF_KEYS = {"diffusion_models": ("unet_gguf",), "text_encoders": ("clip_gguf",)}
MEMORY = (  # the widgets after the files, in the order of saved workflows
    "pretrained_model_name_or_path",
    "allow_download",
    "base_model_precision",
    "text_encoder_1_precision",
    "text_encoder_2_precision",
    "quantize_via",
    "offload_during_startup",
    "vae_enable_tiling",
    "vae_enable_slicing",
    "blocks_to_swap",
    "modulation_offload",
    "attention_mechanism",
    "vae_batch_size",
)


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
                _files("transformer", "diffusion_models"),
                _files("vae", "vae"),
                _files("clip_l", "text_encoders"),
                _files("t5", "text_encoders"),
                widget(BaseModelSpec, "mixed_precision"),
                _files("assistant_lora", "loras"),
                widget(BaseModelSpec, "assistant_lora_strength"),
                widget(BaseModelSpec, "assistant_lora_inference_strength"),
                _files("checkpoint", "checkpoints", "pretrained_model_name_or_path"),
                *(widget(BaseModelSpec, name) for name in MEMORY),
            ],
            outputs=[FluxTrainModel.Output(display_name="FLUX_TRAIN_MODEL")],
        )

    @classmethod
    def execute(
        cls, transformer: str, vae: str, clip_l: str, t5: str, assistant_lora: str, checkpoint: str, **values: Any
    ) -> io.NodeOutput:
        if checkpoint != NO_FILE:
            if values["pretrained_model_name_or_path"]:
                raise JobError(
                    "LoadFluxForTraining: checkpoint and pretrained_model_name_or_path both name a whole FLUX; choose one"
                )
            values["pretrained_model_name_or_path"] = _path("checkpoints", checkpoint)
        paths = {
            "assistant_lora_path": _path("loras", assistant_lora),
            "transformer_path": _path("diffusion_models", transformer),
            "vae_path": _path("vae", vae),
            "clip_l_path": _path("text_encoders", clip_l),
            "t5_path": _path("text_encoders", t5),
        }
        if values["model_flavour"] != "pico":
            paths |= _tokenizers()
        return io.NodeOutput(read_spec("base", values | paths, "LoadFluxForTraining"))


def _files(name: str, folder: str, field: str = "") -> io.Input:
    """A combo of the .safetensors and .gguf files in one of ComfyUI's model folders."""
    listed = {file for file in folder_paths.get_filename_list(folder) if file.lower().endswith(".safetensors")}
    files = sorted(listed | _gguf_files(folder), key=str.lower)
    tooltip = f"{BaseModelSpec.model_fields[field or name + '_path'].description} From ComfyUI's {folder} folder."
    return io.Combo.Input(name, options=[NO_FILE, *files], default=NO_FILE, tooltip=tooltip)


def _gguf_files(folder: str) -> set[str]:
    """ComfyUI itself does not list these; the pack ComfyUI-GGUF adds folders of its own for them."""
    roots = {Path(root) for key in _keys(folder) for root in folder_paths.get_folder_paths(key)}
    return {str(path.relative_to(root)) for root in roots for path in root.rglob("*.gguf")} if folder in GGUF_KEYS else set()


def _keys(folder: str) -> list[str]:
    """The folder's key in ComfyUI, and that of ComfyUI-GGUF for the same kind of file where it is installed."""
    return [folder, *(key for key in GGUF_KEYS.get(folder, ()) if key in folder_paths.folder_names_and_paths)]


def _path(folder: str, name: str) -> str:
    """The absolute path of a chosen file; JobError when it has gone."""
    if name == NO_FILE:
        return ""
    path = next(filter(None, (folder_paths.get_full_path(key, name) for key in _keys(folder))), None)
    if path is None:
        raise JobError(
            f"LoadFluxForTraining: there is no {name!r} in ComfyUI's {folder} folder; put it there or choose another"
        )
    return str(Path(path).absolute())


def _tokenizers() -> dict[str, str]:
    """ComfyUI ships both tokenizers; they lie beside its own text encoders."""
    import comfy.sd1_clip

    comfy_dir = Path(comfy.sd1_clip.__file__).parent
    return {
        "clip_tokenizer_path": str(comfy_dir / "sd1_tokenizer"),
        "t5_tokenizer_path": str(comfy_dir / "text_encoders" / "t5_tokenizer"),
    }
