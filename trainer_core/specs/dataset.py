"""Where pictures and captions come from, and what they are for."""

from typing import Literal

from pydantic import Field, model_validator

from .no_effect import DATASET, refuse_idle
from .spec import Spec


class DatasetSpec(Spec):
    """A folder of pictures with their captions."""

    id: str = Field("pictures", min_length=1, description="Name of this dataset in reports.")
    instance_data_dir: str = Field(description="Folder with the pictures, read with its sub-folders.", min_length=1)
    caption_strategy: Literal["textfile", "filename", "instanceprompt"] = Field(
        "textfile",
        description="textfile: NAME.txt beside NAME.png, the whole file is the caption. filename: the file's name, underscores as spaces. instanceprompt: instance_prompt for all.",
    )
    instance_prompt: str = Field("", description="The caption of every picture when caption_strategy is instanceprompt.")
    resolution: int = Field(
        0,
        ge=0,
        le=4096,
        description="Edge in pixels of the square whose area each picture is brought to; 0: the base's home resolution (1024; pico 64).",
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

    @model_validator(mode="after")
    def _evaluated_as_it_is(self) -> "DatasetSpec":
        if self.dataset_type == "eval" and (self.is_regularisation_data or self.mask_data_dir or self.repeats):
            raise ValueError("an eval dataset takes no is_regularisation_data, mask_data_dir or repeats; take them out")
        return self

    @model_validator(mode="after")
    def _prompt_where_needed(self) -> "DatasetSpec":
        if (self.caption_strategy == "instanceprompt") != bool(self.instance_prompt.strip()):
            raise ValueError("instance_prompt and caption_strategy 'instanceprompt' go together: give both or neither")
        return self

    @model_validator(mode="after")
    def _nothing_idle(self) -> "DatasetSpec":
        refuse_idle(self, DATASET)
        return self
