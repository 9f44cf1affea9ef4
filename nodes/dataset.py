"""DatasetBucket: pictures with captions, from a folder or from an IMAGE batch, and a look at the buckets they fall into.

The output is a tuple of DatasetSpec, so datasets are chained by adding to the tuple. Nothing is resized or encoded here; the
same index that the run will make is made once for the preview, so a bad file shows on this node, before any training.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..trainer_core import pico
from ..trainer_core.data.index import index_datasets
from ..trainer_core.errors import JobError
from ..trainer_core.flux.flavours import FLAVOURS
from ..trainer_core.run_dir import PICTURE_SUFFIXES, READ_BY_DATASETS, dataset_digest
from ..trainer_core.specs.base import BaseModelSpec
from ..trainer_core.specs.dataset import DatasetSpec
from .contact_sheet import describe, draw_contact_sheet
from .folders import home_dir, input_dir
from .pictures import keep_batch, to_batch
from .widgets import CATEGORY, FluxTrainModel, TrainDataset, lines_of, read_spec, widget

if TYPE_CHECKING:
    from torch import Tensor

DEMO_PICTURES = "pico demo pictures"
PURPOSE = ("dataset_type", "is_regularisation_data", "mask_data_dir", "mask_background_weight", "mask_normalise_area")


class DatasetBucket(io.ComfyNode):
    """A folder, or pictures from the graph; out come the dataset, a contact sheet and a report."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DatasetBucket",
            display_name="Dataset Bucket",
            category=CATEGORY,
            description="Pictures with captions to train on, sorted into buckets of one size by their aspect.",
            inputs=[
                io.Combo.Input("folder", options=_folders(), tooltip="A folder with pictures in ComfyUI's input folder."),
                io.String.Input("path", default="", tooltip="Any other folder with pictures; taken instead of the one above."),
                widget(DatasetSpec, "caption_strategy"),
                widget(DatasetSpec, "instance_prompt"),
                widget(DatasetSpec, "resolution"),
                widget(DatasetSpec, "repeats"),
                widget(DatasetSpec, "id", default="", tooltip="Name of this dataset in reports; empty: that of its folder."),
                io.Image.Input("images", optional=True, tooltip="Pictures from the graph, taken instead of a folder."),
                io.String.Input(
                    "captions", optional=True, multiline=True, default="", tooltip="Captions of the images, one a line."
                ),
                *(widget(DatasetSpec, name, optional=True) for name in PURPOSE),
                TrainDataset.Input("previous_dataset", optional=True, tooltip="Datasets that this one is added to."),
                FluxTrainModel.Input(
                    "model", optional=True, tooltip="The base; without it the buckets shown are those of dev."
                ),
            ],
            outputs=[
                TrainDataset.Output(display_name="TRAIN_DATASET"),
                io.Image.Output(display_name="preview"),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, path: str, **rest: Any) -> str:
        """Changes when a file of the folder, or another that the dataset reads, does, so that the node runs again."""
        others = (rest.get(name) or "" for name in READ_BY_DATASETS if name != "instance_data_dir")
        return dataset_digest(_chosen(folder, path), *others)

    @classmethod
    def execute(
        cls,
        folder: str,
        path: str,
        images: "Tensor | None" = None,
        captions: str = "",
        previous_dataset: tuple[DatasetSpec, ...] = (),
        model: BaseModelSpec | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        if images is None and captions.strip():
            raise JobError("DatasetBucket: captions go with images; captions of a folder lie in it as .txt files")
        chosen = _chosen(folder, path) if images is None else _kept(images, captions, path, values["caption_strategy"])
        name = _distinct(values.pop("id").strip() or chosen.name, {spec.id for spec in previous_dataset})
        spec = read_spec("datasets", [{"id": name, "instance_data_dir": str(chosen), **values}], "DatasetBucket")[0]
        flavour = model.model_flavour if model else "dev"
        samples = index_datasets((spec,), FLAVOURS[flavour]).samples
        preview = to_batch([draw_contact_sheet(samples)])
        note = f"for {flavour}" if model else "for dev; connect the model to see those of another base"
        return io.NodeOutput((*previous_dataset, spec), preview, describe(samples, chosen, note))


def _folders() -> list[str]:
    """The demo pictures, then the folders below ComfyUI's input folder that hold pictures."""
    root = input_dir()
    found = (
        Path(folder).relative_to(root).as_posix()
        for folder, _, files in os.walk(root)
        if any(Path(file).suffix.lower() in PICTURE_SUFFIXES for file in files)
    )
    return [DEMO_PICTURES, *sorted(name for name in found if name != ".")]


def _chosen(folder: str, path: str) -> Path:
    """The folder that the two widgets mean."""
    if path.strip():
        return Path(path.strip()).expanduser().absolute()
    if folder == DEMO_PICTURES:
        return pico.DEMO_PICTURES_DIR
    return input_dir() / folder


def _kept(images: "Tensor", captions: str, path: str, caption_strategy: str) -> Path:
    """The folder where pictures of the graph are kept with their captions."""
    if path.strip():
        raise JobError("DatasetBucket: both images and path are given; disconnect the one or empty the other")
    if caption_strategy == "filename":
        raise JobError("DatasetBucket: images from the graph have no file names; choose textfile or instanceprompt")
    lines = lines_of(captions)
    if caption_strategy == "instanceprompt" and lines:
        raise JobError("DatasetBucket: captions and caption_strategy instanceprompt are both given; empty the captions")
    if caption_strategy == "textfile" and len(lines) != len(images):
        raise JobError(f"DatasetBucket: {len(images)} images but {len(lines)} captions; write one line for each image")
    return keep_batch(images, lines, home_dir() / "datasets")


def _distinct(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where it is taken."""
    numbered = (f"{name} {number}" for number in range(2, len(taken) + 3))
    return next(candidate for candidate in (name, *numbered) if candidate not in taken)
