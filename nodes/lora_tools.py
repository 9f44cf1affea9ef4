"""ConvertLoRA, ResizeLoRA, MergeLoRAs, ExtractLoRA: the tools on LoRA files, from ComfyUI's folders into its LoRA folder.

The child process does the work (`flux-lora convert` and so on), so ComfyUI keeps its memory. A node that is queued again makes
the same bytes and finds them there; another file under that name is never written over.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer_core.errors import JobError
from ..trainer_core.file_names import expanded
from .child import make_lora
from .loaded import load_lora
from .model_files import NO_FILE, chosen_file, list_files
from .offers import keep, place
from .permissions import check_readable, digest_of
from .widgets import CATEGORY, choices, completed, text

LORAS, MODELS = "loras", "diffusion_models"
MOST_MERGED = 4
FORMATS = ["diffusers", "kohya", "diffusion_model"]
PRECISIONS = ["as given", "bf16", "fp16", "fp32"]
EXACT = 0


class ConvertLoRA(io.ComfyNode):
    """One adapter in, the same under other names out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        told = "diffusers: transformer.*; kohya: lora_unet_*; diffusion_model: the original's names. ComfyUI reads all three."
        return _schema(
            "ConvertLoRA",
            "Convert LoRA",
            "Writes a LoRA, LoKr or LoHa under the names that other programs use; it does the same.",
            [*_lora("lora"), choices("to", FORMATS, told)],
        )

    @classmethod
    def fingerprint_inputs(cls, **values: Any) -> str:
        return _digest(values)

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        values = completed(cls, values)
        return _made(cls, ["convert", _chosen(values, "lora", cls), "--to", values["to"]], values)


class ResizeLoRA(io.ComfyNode):
    """One adapter in, a LoRA of fewer ranks out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "ResizeLoRA",
            "Resize LoRA",
            "A smaller LoRA with as much of the change as its ranks can hold; makes a LoRA of a LoKr or LoHa, too.",
            [*_lora("lora"), _rank(16, 1, "At most so many ranks in each layer."), _energy()],
        )

    @classmethod
    def fingerprint_inputs(cls, **values: Any) -> str:
        return _digest(values)

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        values = completed(cls, values)
        return _made(cls, ["resize", _chosen(values, "lora", cls), *_size(values)], values)


class MergeLoRAs(io.ComfyNode):
    """Up to four adapters in, their weighted sum out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        told = "0: exact, with the sum of all ranks. Above: at most so many ranks, as good as they can be."
        numbered = [one for number in range(1, MOST_MERGED + 1) for one in (*_lora(f"lora_{number}"), _weight(number))]
        return _schema(
            "MergeLoRAs",
            "Merge LoRAs",
            "Adds up to four LoRAs up, each with its weight: exactly, or to a rank.",
            [*numbered, _rank(EXACT, EXACT, told), _energy()],
        )

    @classmethod
    def fingerprint_inputs(cls, **values: Any) -> str:
        return _digest(values)

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        values = completed(cls, values)
        names = [name for name in (f"lora_{n}" for n in range(1, MOST_MERGED + 1)) if _is_chosen(values, name)]
        if len(names) < 2:
            raise JobError("MergeLoRAs: choose at least two LoRAs")
        weights = ",".join(str(values[name.replace("lora", "weight")]) for name in names)
        loras = [_chosen(values, name, cls) for name in names]
        return _made(cls, ["merge", *loras, f"--weights={weights}", *_size(values)], values)


class ExtractLoRA(io.ComfyNode):
    """Two models in, the LoRA that leads from one to the other out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "ExtractLoRA",
            "Extract LoRA",
            "Makes a LoRA of what was trained into a whole model, by comparing it with the model it was trained from.",
            [
                choices("tuned", list_files(MODELS), "The trained model. From ComfyUI's diffusion_models folder."),
                choices("base_model", list_files(MODELS), "What it was trained from. From ComfyUI's diffusion_models folder."),
                _rank(32, 1, "At most so many ranks in each layer."),
                _energy(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **values: Any) -> str:
        return _digest(values)

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        values = completed(cls, values)
        models = [chosen_file(MODELS, values[name], f"ExtractLoRA: {name}") for name in ("tuned", "base_model")]
        return _made(cls, ["extract", *models, *_size(values)], values)


def _schema(node_id: str, title: str, description: str, inputs: list[io.Input]) -> io.Schema:
    """What all four have: where the new file goes, in which numbers, and what comes out."""
    return io.Schema(
        node_id=node_id,
        display_name=title,
        category=CATEGORY,
        description=description,
        is_output_node=True,
        inputs=[
            *inputs,
            choices("precision", PRECISIONS, "Format of the new file's numbers; as given: that of what it is made from."),
            text("save_as", "Name of the new file in the LoRA folder, or folder/name.", "made"),
        ],
        outputs=[
            io.LoraModel.Output(display_name="LORA_MODEL"),
            io.String.Output(display_name="path"),
            io.String.Output(display_name="report"),
        ],
    )


def _made(node: type[io.ComfyNode], command: list[str], values: Mapping[str, Any]) -> io.NodeOutput:
    """Run the tool, keep its file in the LoRA folder, and hand it on."""
    import comfy.model_management as management

    wanted = place(values["save_as"])
    if values["precision"] != PRECISIONS[0]:
        command = [*command, "--precision", values["precision"]]
    with tempfile.TemporaryDirectory() as folder:
        report = make_lora(command, Path(folder) / wanted.name, on_tick=management.throw_exception_if_processing_interrupted)
        kept = keep(Path(report["path"]), wanted)
    told = "\n".join((f"{report['kind']}, {report['layers']} layers, ranks {report['ranks']}", _loss(report), *report["notes"]))
    return io.NodeOutput(load_lora(kept), str(kept), told)


def _loss(report: Mapping[str, Any]) -> str:
    layer, share = report["worst"]
    return f"differs from what was meant by {report['difference']:.2g} of it, at most by {share:.2g} in {layer}"


def _lora(name: str) -> list[io.Input]:
    """A LoRA by its name in ComfyUI's folder, or by the path that comes from another node."""
    told = "Its path, such as comes from Train LoRA; then the choice above does not count."
    chosen = choices(name, list_files(LORAS), "A LoRA, LoKr or LoHa for FLUX.1. From ComfyUI's loras folder.")
    return [chosen, text(f"{name}_path", told)]


def _is_chosen(values: Mapping[str, Any], name: str) -> bool:
    return bool(values[f"{name}_path"].strip()) or values[name] != NO_FILE


def _chosen(values: Mapping[str, Any], name: str, node: type[io.ComfyNode]) -> str:
    """The path of the LoRA that is meant; JobError where it may not be read, or is not there."""
    if path := values[f"{name}_path"].strip():
        check_readable(expanded(path), f"{name}_path", node.__name__)
        return str(expanded(path).absolute())
    return chosen_file(LORAS, values[name], f"{node.__name__}: {name}")


def _digest(values: Mapping[str, Any]) -> str:
    """Changes when a file that is read does. What comes along a wire is not known here, but has a digest of its own."""
    folders = {"tuned": MODELS, "base_model": MODELS}
    paths = [value for name, value in values.items() if name.endswith("_path")]
    for name, value in values.items():
        if name in folders or (name.startswith("lora") and not name.endswith("_path")):
            paths.append(chosen_file(folders.get(name, LORAS), value, "") if value not in (None, NO_FILE) else "")
    return digest_of(*paths)


def _size(values: Mapping[str, Any]) -> list[str]:
    rank = [] if values["rank"] == EXACT else ["--rank", str(values["rank"])]
    return [*rank, "--energy", str(values["energy"])]


def _rank(default: int, least: int, tooltip: str) -> io.Input:
    return io.Int.Input("rank", default=default, min=least, max=4096, optional=True, tooltip=tooltip)


def _energy() -> io.Input:
    told = "No more ranks in a layer than hold this share of its change's energy, such as 0.95; 1: no such limit."
    return io.Float.Input("energy", default=1.0, min=0.01, max=1.0, step=0.01, optional=True, tooltip=told)


def _weight(number: int) -> io.Input:
    told = f"What lora_{number} is multiplied by."
    return io.Float.Input(f"weight_{number}", default=1.0, min=-10.0, max=10.0, step=0.05, optional=True, tooltip=told)
