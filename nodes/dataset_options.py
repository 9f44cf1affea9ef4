"""Dataset Crop, Dataset Captions and Dataset Sampling: the settings of a dataset that most people leave alone.

Each gives a dict of fields of DatasetSpec; they are chained, and Dataset Bucket, which knows the rest of the fields, checks
them all together. Every field has its widget in one place only, so no setting can be given twice but by the same node twice.
"""

from typing import Any

from comfy_api.latest import io

from ..trainer_core.graph_parts import options_of
from ..trainer_core.specs.dataset import DatasetSpec
from .permissions import digest_of
from .widgets import CATEGORY, DatasetOptions, completed, widget

CROP = (  # the widgets of each node in the order of saved workflows: append, never insert
    "resolution_type",
    "minimum_image_size",
    "maximum_image_size",
    "target_downsample_size",
    "minimum_aspect_ratio",
    "maximum_aspect_ratio",
    "crop",
    "crop_style",
    "crop_aspect",
    "crop_aspect_buckets",
    "num_crops",
    "background",
    "reference_geometry",
    "small_buckets",
)
CAPTIONS = (
    "missing_caption",
    "multiline_captions",
    "caption_table",
    "filename_column",
    "caption_column",
    "fallback_caption_column",
    "caption_prefix",
    "shuffle_tags",
    "tag_separator",
    "keep_tags",
    "wildcards_dir",
    "caption_variants",
)
SAMPLING = ("probability", "start_step", "end_step", "max_num_samples", "disabled")


class DatasetCrop(io.ComfyNode):
    """Which sizes are taken, and how pictures are cropped."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("DatasetCrop", "Dataset Crop", "Which sizes of pictures are taken, and how they are cropped.", CROP)

    @classmethod
    def execute(cls, previous_options: dict[str, Any] | None = None, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(options_of("DatasetCrop", completed(cls, values), previous_options))


class DatasetCaptions(io.ComfyNode):
    """Where captions come from beyond text files, and how they vary."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        text = "Captions from a table, missing ones, a prefix, shuffled tags and wildcards."
        return _schema("DatasetCaptions", "Dataset Captions", text, CAPTIONS)

    @classmethod
    def fingerprint_inputs(cls, caption_table: str = "", wildcards_dir: str = "", **rest: Any) -> str:
        """Changes when the table or a list of wildcards does, so that the dataset is looked at again."""
        return digest_of(caption_table, wildcards_dir)

    @classmethod
    def execute(cls, previous_options: dict[str, Any] | None = None, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(options_of("DatasetCaptions", completed(cls, values), previous_options))


class DatasetSampling(io.ComfyNode):
    """How much of a dataset is taken, and when."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        text = "How many pictures of a dataset are taken, how early in an epoch, and in which steps."
        return _schema("DatasetSampling", "Dataset Sampling", text, SAMPLING)

    @classmethod
    def execute(cls, previous_options: dict[str, Any] | None = None, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(options_of("DatasetSampling", completed(cls, values), previous_options))


def _schema(node_id: str, title: str, description: str, fields: tuple[str, ...]) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name=title,
        category=CATEGORY,
        description=description,
        inputs=[
            *(widget(DatasetSpec, name) for name in fields),
            DatasetOptions.Input("previous_options", optional=True, tooltip="Options that these are added to."),
        ],
        outputs=[DatasetOptions.Output(display_name="DATASET_OPTIONS")],
    )
