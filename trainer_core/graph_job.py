"""The job of a workflow: what Train LoRA would train in ComfyUI, made without ComfyUI.

Each of our nodes becomes the spec that it hands on there (`graph_parts.py`). Names of model files are looked up in the model
folders that the user gives. What only exists while ComfyUI runs, pictures on a wire, cannot be exported and is refused.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .errors import JobError
from .graph import DAMAGE, Graph, Link, Node
from .graph_parts import (
    DEMO_PICTURES,
    PREVIEW_DECODER,
    SOCKETS,
    SPECS,
    Places,
    base_of,
    chosen_folder,
    dataset_of,
    imported,
    job_of,
    options_of,
    spec_of,
)
from .job import TrainJob
from .job_file import parse_part

TRAIN = "TrainLoRA"
OPTION_NODES = ("DatasetCrop", "DatasetCaptions", "DatasetSampling")
VALUE_NODES = ("PrimitiveInt", "PrimitiveFloat", "PrimitiveString", "PrimitiveStringMultiline", "PrimitiveBoolean")
ON_A_WIRE = ("images", "masks", "references")  # of DatasetBucket
NOT_SETTINGS = ("previous_dataset", "model", "options", "training", "captions", "folder", "path")  # of DatasetBucket
ALIASES = {  # ComfyUI's keys of model folders -> names of the folders
    "diffusion_models": ("diffusion_models", "unet"),
    "text_encoders": ("text_encoders", "clip"),
}
TOKENIZERS = {"clip_tokenizer_path": "comfy/sd1_tokenizer", "t5_tokenizer_path": "comfy/text_encoders/t5_tokenizer"}


class ComfyFolders(NamedTuple):
    """ComfyUI's folders as the user gives them: its own, and those of models that lie elsewhere."""

    comfyui: Path | None = None
    models: tuple[Path, ...] = ()

    def model_file(self, folder: str, name: str) -> str:
        """The absolute path of a model file; JobError when it is in none of the folders."""
        roots = [*self.models, *([self.comfyui / "models", self.comfyui / "output"] if self.comfyui else [])]
        if not roots:
            raise JobError(f"the workflow names the file {name!r}; say where ComfyUI's models are, with --comfyui or --models")
        places = [root / alias / name for root in roots for alias in ALIASES.get(folder, (folder,))]
        found = next((place for place in places if os.path.isfile(place)), None)  # False, too, where a name is longer than any
        if found is None:
            raise JobError(f"there is no {name!r} in {', '.join(str(place.parent) for place in places)}; correct --models")
        return str(found.absolute())

    def tokenizers(self) -> dict[str, str]:
        """Those that ComfyUI ships."""
        homes = [self.comfyui] if self.comfyui else [root.absolute().parent for root in self.models]
        home = next((home for home in homes if home and (home / "comfy" / "sd1_tokenizer").is_dir()), None)
        if home is None:
            raise JobError("the tokenizers are ComfyUI's own; say where ComfyUI is, with --comfyui")
        return {field: str((home / place).absolute()) for field, place in TOKENIZERS.items()}

    def preview_decoder(self) -> dict[str, str]:
        """Beside the models, where it is there."""
        roots = [*self.models, *([self.comfyui / "models"] if self.comfyui else [])]
        there = (root / "vae_approx" / PREVIEW_DECODER for root in roots)
        return next(({"preview_decoder_path": str(path.absolute())} for path in there if path.is_file()), {})

    def input_dir(self) -> Path:
        home = self.comfyui or (self.models[0].absolute().parent if self.models else None)
        if home is None:
            raise JobError("the workflow names a folder in ComfyUI's input folder; say where ComfyUI is, with --comfyui")
        return (home / "input").absolute()


def export_job(graph: Graph, places: Places, node: str = "", device: str = "auto") -> TrainJob:
    """The job of the graph's Train LoRA node, or of the one with this id; JobError says what cannot be exported."""
    trainers = [name for name, one in graph.items() if one.kind == TRAIN]
    if not trainers:
        raise JobError(
            "the workflow has no Train LoRA node that would run; if it is inside a subgraph, unpack that or use Export (API)"
        )
    if node and node not in trainers:
        raise JobError(f"node {node} is no Train LoRA; there is {', '.join(trainers)}")
    if len(trainers) > 1 and not node:
        raise JobError(f"the workflow has several Train LoRA nodes; choose one with --node: {', '.join(trainers)}")
    try:
        return _Export(graph, places).job(node or trainers[0], device)
    except JobError:
        raise
    except DAMAGE as error:
        raise JobError(
            f"the workflow has a value of a wrong kind ({type(error).__name__}: {str(error)[:80]}); "
            "open it in ComfyUI and save it again"
        ) from error


class _Export:
    """One export: follows wires from the Train LoRA node back to what they hand on."""

    def __init__(self, graph: Graph, places: Places):
        self._graph = graph
        self._places = places

    def job(self, name: str, device: str) -> TrainJob:
        node = self._graph[name]
        for socket in ("model", "dataset"):
            if not isinstance(node.inputs.get(socket), Link):
                raise JobError(f"Train LoRA (node {name}) has nothing on its input {socket}")
        parts = {"base": self._input(node, "model"), "datasets": self._input(node, "dataset")}
        parts |= {socket: self._input(node, socket) for socket in SOCKETS}
        values = self._values(node, leave=("model", "dataset", "options", *SOCKETS))
        return job_of(values, self._input(node, "options"), device, parts, {})

    def _input(self, node: Node, name: str) -> Any:
        """What comes in, made from the node that it comes from; None where nothing does."""
        given = node.inputs.get(name)
        if not isinstance(given, Link):
            return given
        source = self._graph.get(given.node)
        if source is None:
            raise JobError(f"{node.kind}: input {name} comes from node {given.node}, which is not in the workflow")
        if source.kind in VALUE_NODES:
            return self._input(source, "value")
        if source.kind not in MAKERS:
            raise JobError(
                f"{node.kind}: input {name} comes from {source.kind}, which only ComfyUI can run; type its value in, or train "
                "in ComfyUI"
            )
        return MAKERS[source.kind](self, source)[given.slot]

    def _values(self, node: Node, leave: tuple[str, ...] = ()) -> dict[str, Any]:
        """The values of all widgets, also of those that a wire comes into."""
        if node.problem:
            raise JobError(node.problem)
        return {name: self._input(node, name) for name in node.inputs if name not in leave}

    def base(self, node: Node) -> tuple[Any, ...]:
        return (base_of(self._values(node), self._places),)

    def dataset(self, node: Node) -> tuple[Any, ...]:
        wired = [name for name in ON_A_WIRE if isinstance(node.inputs.get(name), Link)]
        if wired:
            raise JobError(
                f"DatasetBucket: {', '.join(wired)} come along a wire and exist only while ComfyUI runs; save them to a folder "
                "and name it as path, or train in ComfyUI"
            )
        previous = self._input(node, "previous_dataset") or ()
        folder, path = (self._input(node, name) for name in ("folder", "path"))
        chosen = chosen_folder(folder or DEMO_PICTURES, path or "", self._places)
        values = self._values(node, leave=(*NOT_SETTINGS, *ON_A_WIRE))
        spec = dataset_of(values, self._input(node, "options"), previous, {"instance_data_dir": str(chosen)})
        return ((*previous, spec),)

    def options(self, node: Node) -> tuple[Any, ...]:
        previous = self._input(node, "previous_options")
        return (options_of(node.kind, self._values(node, leave=("previous_options",)), previous),)

    def spec(self, node: Node) -> tuple[Any, ...]:
        return (spec_of(node.kind, self._values(node)),)

    def routes(self, node: Node) -> tuple[Any, ...]:
        previous = self._input(node, "previous_routes") or ()
        values = self._values(node, leave=("previous_routes",))
        return (parse_part("routes", [*previous, values], node.kind),)

    def imported(self, node: Node) -> tuple[Any, ...]:
        return imported(self._values(node))


MAKERS: dict[str, Callable[[_Export, Node], tuple[Any, ...]]] = {  # node -> all that it hands on and that a job may hold
    "LoadFluxForTraining": _Export.base,
    "DatasetBucket": _Export.dataset,
    "TREADRoute": _Export.routes,
    "ImportSimpleTunerConfig": _Export.imported,
    **dict.fromkeys(OPTION_NODES, _Export.options),
    **dict.fromkeys(SPECS, _Export.spec),
}
