"""Where pictures and captions come from, and what they are for."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .aspects import parse_aspects
from .no_effect import DATASET, changed, refuse_idle
from .spec import Spec


class DatasetSpec(Spec):
    """A folder of pictures with their captions."""

    id: str = Field("pictures", min_length=1, description="Name of this dataset in reports.")
    instance_data_dir: str = Field(description="Folder with the pictures, read with its sub-folders.", min_length=1)
    caption_strategy: Literal["textfile", "filename", "instanceprompt", "parquet", "jsonl", "csv"] = Field(
        "textfile",
        description="textfile: NAME.txt or NAME.caption beside NAME.png, the whole file is the caption. filename: the file's name, "
        "underscores as spaces. instanceprompt: instance_prompt for all. parquet, jsonl, csv: from caption_table.",
    )
    instance_prompt: str = Field("", description="The caption of every picture when caption_strategy is instanceprompt.")
    resolution: tuple[float, ...] = Field(
        (),
        description="What each picture is brought to, by resolution_type: the edge in pixels of a square of that area. Several, "
        "such as '512, 1024', show each picture in all of them. Empty: the base's home resolution (1024; pico 64).",
    )
    repeats: int = Field(
        0, ge=0, le=100_000, description="Extra passes over this dataset in each epoch: 0 shows each picture once."
    )
    dataset_type: Literal["image", "eval"] = Field(
        "image", description="image: trained on. eval: never trained on, only the loss is measured on it (eval_steps_interval)."
    )
    is_regularisation_data: bool = Field(
        False,
        description="The adapter is to change nothing here: the target is what the model says without it, on these pictures.",
    )
    mask_data_dir: str = Field(
        "",
        description="Folder with a mask for each picture, under the same path and name: white is trained on, black is not, grey partly.",
    )
    mask_background_weight: float = Field(
        0.0, ge=0.0, le=1.0, description="How much the loss counts where the mask is black; 1 would be no mask at all."
    )
    mask_normalise_area: bool = Field(
        False, description="Count a small masked subject as much as a large one: the loss is divided by the mask's mean."
    )

    disabled: bool = Field(False, description="Leave this dataset out.")
    resolution_type: Literal["pixel_area", "area", "pixel"] = Field(
        "pixel_area",
        description="What resolution and the size limits mean. pixel_area: the edge of a square of that area, in pixels. area: "
        "megapixels. pixel: the shorter edge, in pixels.",
    )
    minimum_image_size: float = Field(
        0.0, ge=0.0, le=65_536.0, description="Smaller pictures are left out, in the unit of resolution_type; 0: none are."
    )
    maximum_image_size: float = Field(
        0.0,
        ge=0.0,
        le=65_536.0,
        description="With crop, larger pictures are first brought to target_downsample_size, and others are cropped as they are; "
        "0: every picture is resized until it just covers its bucket.",
    )
    target_downsample_size: float = Field(
        0.0,
        ge=0.0,
        le=65_536.0,
        description="What pictures above maximum_image_size are brought to before they are cropped, in the unit of resolution_type.",
    )
    minimum_aspect_ratio: float = Field(
        0.0, ge=0.0, le=100.0, description="Narrower pictures (width / height) are left out; 0: none are."
    )
    maximum_aspect_ratio: float = Field(
        0.0, ge=0.0, le=100.0, description="Wider pictures (width / height) are left out; 0: none are."
    )
    crop: bool = Field(
        False,
        description="Crop to crop_aspect. Without, each picture keeps its aspect, but for what does not fit the grid of buckets.",
    )
    crop_style: Literal["center", "random", "corner", "face"] = Field(
        "center", description="Which part is kept where something must go. corner: the upper left. face: where a face is found."
    )
    crop_aspect: Literal["square", "preserve", "closest", "random"] = Field(
        "square",
        description="The shape to crop to. preserve: the picture's own. closest: the nearest of crop_aspect_buckets. random: one "
        "of these by their weights.",
    )
    crop_aspect_buckets: tuple[str, ...] = Field(
        (), description="Aspects (width / height) for crop_aspect closest and random, one a line; with a weight as '1.5: 2'."
    )
    num_crops: int = Field(
        1, ge=1, le=64, description="With crop_style random, how many crops of each picture are cached; each visit takes one."
    )
    horizontal_flip: bool = Field(False, description="Each visit shows the picture or its mirror image.")
    background: str = Field(
        "white", min_length=1, description="What shows through transparent pictures: a colour's name or #rrggbb."
    )
    small_buckets: Literal["smaller_batch", "merge", "drop"] = Field(
        "smaller_batch",
        description="What happens to a bucket that holds less than a batch. merge: its pictures go to the nearest aspect. drop: "
        "they are left out, and the report names them.",
    )
    probability: float = Field(
        1.0, gt=0.0, le=1_000_000.0, description="How early this dataset's batches come within an epoch, beside the others."
    )
    start_step: int = Field(0, ge=0, le=10_000_000, description="The first step (from 0) that may draw from this dataset.")
    end_step: int = Field(0, ge=0, le=10_000_000, description="The step from which on it is drawn from no more; 0: to the end.")
    max_num_samples: int = Field(
        0, ge=0, le=100_000_000, description="Take only so many pictures, drawn once and for all by the dataset's id; 0: all."
    )
    multiline_captions: bool = Field(
        False, description="Each line of a textfile is a caption of its own; each visit takes one of them."
    )
    missing_caption: Literal["error", "filename", "skip"] = Field(
        "error", description="A picture without a caption stops the run, takes its file's name, or is left out."
    )
    caption_table: str = Field(
        "", description="The parquet, jsonl or csv file with the captions: its path, also from instance_data_dir on."
    )
    filename_column: str = Field(
        "filename", min_length=1, description="Column of caption_table with the picture's path below the folder, or its name."
    )
    caption_column: str = Field("caption", min_length=1, description="Column of caption_table with the caption.")
    fallback_caption_column: str = Field("", description="Column of caption_table to take where caption_column is empty.")
    trigger_word: str = Field(
        "", description="Put in front of every caption that does not hold it yet; with shuffle_tags as a part of its own."
    )
    caption_prefix: str = Field("", description="Put in front of every caption as it is, before the trigger word.")
    shuffle_tags: bool = Field(False, description="Shuffle the parts of each caption; caption_variants says how many ways.")
    tag_separator: str = Field(",", min_length=1, description="What stands between the parts of a caption.")
    keep_tags: int = Field(
        0, ge=0, le=1000, description="So many parts of the caption stay in front; the trigger word and prefix always do."
    )
    wildcards_dir: str = Field(
        "", description="Folder of text files: __name__ in a caption becomes a line of name.txt, drawn by caption_variants."
    )
    caption_variants: int = Field(
        1,
        ge=1,
        le=64,
        description="Ways in which tags are shuffled and wildcards are filled; each visit takes one of them. With several, one of "
        "them has the tags as they are written.",
    )
    alpha_is_mask: bool = Field(
        False, description="What is opaque in a picture is trained on; a picture without transparency has no mask."
    )
    reference_data_dir: str = Field(
        "", description="Folder with the reference of each picture, under the same path and name: what kontext starts from."
    )
    reference_geometry: Literal["strict", "loose"] = Field(
        "strict", description="strict: the reference is cropped as its picture is. loose: it keeps its own aspect."
    )

    @field_validator("resolution", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        """A number, a text of numbers, or a list; 0 and nothing are the base's own."""
        if isinstance(given, str):
            given = given.replace(",", " ").split()
        values = given if isinstance(given, list | tuple) else [given]
        return () if [str(value) for value in values] in (["0"], ["0.0"]) else tuple(values)

    @field_validator("resolution")
    @classmethod
    def _resolutions_in_range(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        wrong = [value for value in values if not 0 < value <= 8192]
        if wrong or len(set(values)) < len(values):
            raise ValueError(f"resolution {', '.join(f'{value:g}' for value in values)}: give each once, above 0, at most 8192")
        return values

    @field_validator("crop_aspect_buckets", mode="before")
    @classmethod
    def _aspects_as_text(cls, given: Any) -> Any:
        """Numbers as they stand in a JSON list are taken too; what is no list its type refuses."""
        if not isinstance(given, list | tuple):
            return given
        return [f"{value:g}" if isinstance(value, int | float) else value for value in given]

    @field_validator("crop_aspect_buckets")
    @classmethod
    def _aspects_in_range(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        parse_aspects(lines)
        return lines

    @field_validator("background")
    @classmethod
    def _a_colour(cls, given: str) -> str:
        from PIL import ImageColor  # here, because most jobs only have the default, which is not validated

        try:
            is_opaque = len(ImageColor.getrgb(given.strip())) == 3
        except ValueError:
            is_opaque = False
        if not is_opaque:
            raise ValueError(f"background {given!r} is no opaque colour; give a name such as black, or #rrggbb")
        return given.strip()

    @model_validator(mode="after")
    def _sizes_in_their_unit(self) -> "DatasetSpec":
        """Pixels given as megapixels, or the other way round, would make pictures that no card can hold, or of nothing."""
        unit = self.resolution_type
        given = {"resolution": self.resolution} | {name: (getattr(self, name),) for name in SIZE_LIMITS}
        for name, value in [(name, value) for name, values in given.items() for value in values if value]:
            if unit == "area" and value > MOST_MEGAPIXELS:
                raise ValueError(
                    f"{name} {value:g} is in megapixels with resolution_type 'area'; choose 'pixel_area' for pixels"
                )
            if unit != "area" and value < LEAST_PIXELS:
                raise ValueError(f"{name} {value:g} is in pixels with resolution_type {unit!r}; choose 'area' for megapixels")
        return self

    @model_validator(mode="after")
    def _evaluated_as_it_is(self) -> "DatasetSpec":
        given = changed(self, NOT_FOR_EVALUATION) if self.dataset_type == "eval" else []
        if given:
            raise ValueError(f"an eval dataset is shown as it is; take out {', '.join(given)}")
        return self

    @model_validator(mode="after")
    def _caption_source_where_needed(self) -> "DatasetSpec":
        if (self.caption_strategy == "instanceprompt") != bool(self.instance_prompt.strip()):
            raise ValueError("instance_prompt and caption_strategy 'instanceprompt' go together: give both or neither")
        if (self.caption_strategy in TABLES) != bool(self.caption_table.strip()):
            raise ValueError(f"caption_table and caption_strategy {', '.join(TABLES)} go together: give both or neither")
        return self

    @model_validator(mode="after")
    def _sizes_fit_together(self) -> "DatasetSpec":
        if bool(self.maximum_image_size) != bool(self.target_downsample_size):
            raise ValueError("maximum_image_size and target_downsample_size go together: give both or neither")
        if self.maximum_image_size and not self.crop:
            raise ValueError(
                "maximum_image_size and target_downsample_size have no effect without crop; switch it on, or clear them"
            )
        if self.target_downsample_size > self.maximum_image_size:
            raise ValueError(
                f"target_downsample_size {self.target_downsample_size:g} is above maximum_image_size "
                f"{self.maximum_image_size:g}; lower it, so that large pictures become smaller"
            )
        if 0 < self.maximum_aspect_ratio < self.minimum_aspect_ratio:
            raise ValueError(
                f"minimum_aspect_ratio {self.minimum_aspect_ratio:g} is above maximum_aspect_ratio {self.maximum_aspect_ratio:g}"
            )
        if self.crop and self.crop_aspect in LISTED_ASPECTS and not self.crop_aspect_buckets:
            raise ValueError(
                f"crop_aspect {self.crop_aspect!r} needs crop_aspect_buckets; list the aspects, such as 0.75, 1, 1.5"
            )
        if (
            self.crop
            and self.crop_aspect == "closest"
            and any(weight != 1 for _, weight in parse_aspects(self.crop_aspect_buckets))
        ):
            raise ValueError(
                "the weights in crop_aspect_buckets have no effect with crop_aspect 'closest'; write the aspects alone"
            )
        if 0 < self.end_step <= self.start_step:
            raise ValueError(f"end_step {self.end_step} is not after start_step {self.start_step}")
        return self

    @model_validator(mode="after")
    def _one_mask(self) -> "DatasetSpec":
        if self.mask_data_dir and self.alpha_is_mask:
            raise ValueError("mask_data_dir and alpha_is_mask both say where masks come from; take one out")
        return self

    @model_validator(mode="after")
    def _nothing_idle(self) -> "DatasetSpec":
        refuse_idle(self, DATASET)
        return self


SIZE_LIMITS = ("minimum_image_size", "maximum_image_size", "target_downsample_size")
MOST_MEGAPIXELS = 100.0  # more than a picture may have
LEAST_PIXELS = 8.0
TABLES = ("parquet", "jsonl", "csv")
LISTED_ASPECTS = ("closest", "random")
NOT_FOR_EVALUATION = (
    "is_regularisation_data",
    "repeats",
    "num_crops",
    "horizontal_flip",
    "small_buckets",
    "probability",
    "start_step",
    "end_step",
    "multiline_captions",
    "shuffle_tags",
    "wildcards_dir",
)
