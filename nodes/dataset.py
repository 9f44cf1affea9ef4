"""DatasetBucket: pictures with captions, from a folder or from an IMAGE batch, and a look at the buckets they fall into.

The output is a tuple of DatasetSpec, so datasets are chained by adding to the tuple. Nothing is resized or encoded here; the
same index that the run will make is made once for the preview, so a bad file shows on this node, before any training.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from comfy_api.latest import io

from ..trainer_core.data.index import index_datasets
from ..trainer_core.data.small_buckets import settle_small_buckets
from ..trainer_core.errors import JobError
from ..trainer_core.flux.flavours import FLAVOURS
from ..trainer_core.graph_parts import DEMO_FOLDERS, chosen_folder, dataset_of, joined, lines_of
from ..trainer_core.run_dir import PICTURE_SUFFIXES, READ_BY_DATASETS
from ..trainer_core.specs.base import BaseModelSpec
from ..trainer_core.specs.dataset import DatasetSpec
from ..trainer_core.specs.training import TrainingSpec
from .folders import datasets_dir, home_dir, input_dir
from .model_files import ComfyPlaces
from .permissions import check_part, digest_of
from .pictures import keep_batch, to_batch
from .widgets import (
    CATEGORY,
    DatasetOptions,
    FluxTrainModel,
    TrainDataset,
    TrainingOptionsWire,
    choices,
    completed,
    text,
    widget,
)

if TYPE_CHECKING:
    from torch import Tensor

PURPOSE = ("dataset_type", "is_regularisation_data", "mask_data_dir", "mask_background_weight", "mask_normalise_area")
MORE = ("trigger_word", "horizontal_flip", "alpha_is_mask", "reference_data_dir")


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
                choices("folder", _folders(), "A folder with pictures in ComfyUI's input folder, or of the pack's own."),
                text("path", "Any other folder with pictures; taken instead of the one above."),
                widget(DatasetSpec, "caption_strategy"),
                widget(DatasetSpec, "instance_prompt"),
                widget(DatasetSpec, "resolution", multiline=False),
                widget(DatasetSpec, "repeats"),
                widget(DatasetSpec, "id", default="", tooltip="Name of this dataset in reports; empty: that of its folder."),
                io.Image.Input("images", optional=True, tooltip="Pictures from the graph, taken instead of a folder."),
                text("captions", "Captions of the images, one a line.", multiline=True),
                *(widget(DatasetSpec, name) for name in PURPOSE),
                TrainDataset.Input("previous_dataset", optional=True, tooltip="Datasets that this one is added to."),
                FluxTrainModel.Input(
                    "model", optional=True, tooltip="The base; without it the buckets shown are those of dev."
                ),
                *(widget(DatasetSpec, name) for name in MORE),
                io.Mask.Input("masks", optional=True, tooltip="Masks of the images: white is trained on, black is not."),
                io.Image.Input("references", optional=True, tooltip="What kontext starts from, one for each of the images."),
                DatasetOptions.Input(
                    "options", optional=True, tooltip="From Dataset Crop, Dataset Captions or Dataset Sampling, or a chain."
                ),
                TrainingOptionsWire.Input(
                    "training", optional=True, tooltip="The report counts with its batch size; without it, 1."
                ),
            ],
            outputs=[
                TrainDataset.Output(display_name="TRAIN_DATASET"),
                io.Image.Output(display_name="preview"),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str = "") -> bool:
        """Any name will do here: whether it is needed, and where it belongs when it is missing, `execute` says."""
        return True

    @classmethod
    def fingerprint_inputs(cls, **values: Any) -> str | float:
        """Changes when a file of the folder, or another that the dataset reads, does, so that the node runs again.

        What comes over a wire is not known here, only that it does (it is None): then the node runs each time.
        """
        values = completed(cls, values)
        places = [values.get(name, "") for name in ("folder", "path", *READ_BY_DATASETS)]
        if None in places:
            return float("nan")
        return digest_of("" if "images" in values else str(chosen_folder(*places[:2], ComfyPlaces())), *places[2:])

    @classmethod
    def execute(
        cls,
        previous_dataset: tuple[DatasetSpec, ...] = (),
        model: BaseModelSpec | None = None,
        options: dict[str, Any] | None = None,
        training: TrainingSpec | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        from ..trainer_core.data.report import make_report
        from ..trainer_core.data.sheet import draw_sheet

        values = completed(cls, values)
        folder, path = values.pop("folder"), values.pop("path")
        batch = Batch(*(values.pop(name, None) for name in Batch._fields))
        if batch.given():
            folders = batch.keep(path, joined(options, values, "DatasetBucket"))
        else:
            folders = {"instance_data_dir": str(chosen_folder(folder, path, ComfyPlaces()))}
        spec = dataset_of(values, options, previous_dataset, folders)
        check_part(spec, "DatasetBucket")
        flavour, training = model.model_flavour if model else "dev", training or TrainingSpec()
        index = index_datasets((spec,), FLAVOURS[flavour], home_dir() / "cache", _watched())
        index = settle_small_buckets(index, (spec,), training.train_batch_size)
        report = make_report(
            index, (spec,), training.train_batch_size, accumulation=training.gradient_accumulation_steps
        ).describe()
        note = f"for {flavour}" if model else "for dev; connect the model to see those of another base"
        return io.NodeOutput((*previous_dataset, spec), to_batch([draw_sheet(index)]), f"{note}\n\n{report}")


class Batch(NamedTuple):
    """Pictures from the graph with what goes with them, a line of captions for each."""

    images: "Tensor | None"
    captions: str | None
    masks: "Tensor | None"
    references: "Tensor | None"

    def given(self) -> bool:
        """Whether there are images; JobError where there is only what goes with them."""
        if self.images is None and (self.captions or "").strip():
            raise JobError("DatasetBucket: captions go with images; captions of a folder lie in it as .txt files")
        if self.images is None and not (self.masks is None and self.references is None):
            raise JobError("DatasetBucket: masks and references go with images; for a folder give the folders of theirs")
        return self.images is not None

    def keep(self, path: str, values: dict[str, Any]) -> dict[str, str]:
        """The fields of the folders in which all of it is kept; JobError where something does not go together."""
        if path.strip():
            raise JobError("DatasetBucket: both images and path are given; disconnect the one or empty the other")
        strategy, lines = values["caption_strategy"], lines_of(self.captions or "")
        if strategy not in ("textfile", "instanceprompt"):
            raise JobError("DatasetBucket: images from the graph have no file names; choose textfile or instanceprompt")
        if strategy == "instanceprompt" and lines:
            raise JobError("DatasetBucket: captions and caption_strategy instanceprompt are both given; empty the captions")
        if strategy == "textfile" and len(lines) != len(self.images):
            raise JobError(f"DatasetBucket: {len(self.images)} images but {len(lines)} captions; write one line for each image")
        partners = (("masks", self.masks, "mask_data_dir"), ("references", self.references, "reference_data_dir"))
        for name, given, field in partners:
            if given is not None and len(given) != len(self.images):
                raise JobError(f"DatasetBucket: {len(self.images)} images but {len(given)} {name}; give one for each image")
            if given is not None and values.get(field, "").strip():
                raise JobError(f"DatasetBucket: both {name} and {field} are given; disconnect the one or empty the other")
        return keep_batch(self.images, lines, datasets_dir(), self.masks, self.references).fields()


def _folders() -> list[str]:
    """The pack's own, then the folders below ComfyUI's input folder that hold pictures; hidden ones may be uploads."""
    root = input_dir()
    found = (
        Path(folder).relative_to(root).as_posix()
        for folder, _, files in os.walk(root)
        if any(Path(file).suffix.lower() in PICTURE_SUFFIXES for file in files)
    )
    return [*DEMO_FOLDERS, *sorted(name for name in found if not any(part.startswith(".") for part in name.split("/")))]


def _watched() -> Callable[[int, int], None]:
    """Shows on the node how many files were looked at, and lets the user cancel."""
    from comfy.model_management import throw_exception_if_processing_interrupted
    from comfy.utils import ProgressBar

    bar = ProgressBar(1)

    def show(done: int, total: int) -> None:
        throw_exception_if_processing_interrupted()
        bar.update_absolute(done, max(1, total))

    return show
