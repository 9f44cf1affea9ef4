"""multidatabackend.json as datasets of the job.

There, a list holds pictures, masks, references and caches side by side, tied together by ids. Here a dataset names the folders
of its masks and references itself, and caches need no entry.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..specs.dataset import LISTED_ASPECTS, NOT_FOR_EVALUATION, DatasetSpec
from ..specs.no_effect import DATASET, changed
from .simpletuner_dataset_options import DATASET_ALIASES, DATASET_OPTIONS, DOWNLOADED, INHERITED, RENAMED_TABLE
from .simpletuner_draft import (
    EMPTY,
    IDLE,
    MISFITS,
    OTHERWISE,
    REFUSED,
    TAKEN,
    UNKNOWN,
    Draft,
    Fields,
    Note,
    Unfit,
    apply,
    drop_empty,
    is_on,
)
from .simpletuner_files import Options, Place, option_name

CACHES = ("text_embeds", "image_embeds", "conditioning_image_embeds")
MASKS, REFERENCES = ("mask", "segmentation"), ("reference_strict", "reference_loose")


@dataclass
class DatasetDraft:
    """One entry of the list as it becomes a dataset; to the tables it looks like a Draft."""

    options: Options
    place: Place
    notes: list[Note]
    fields: Fields = field(default_factory=lambda: Fields(DatasetSpec))

    @property
    def name(self) -> str:
        return str(self.options.get("id") or "pictures")

    def put(self, path: str, value: Any) -> None:
        self.fields.put(path, value)

    def get(self, path: str) -> Any:
        return self.fields.get(path)

    def note(self, kind: str, option: str, text: str) -> None:
        self.notes.append(Note(kind, f"{self.name}: {option}", self.options.get(option), text))

    def given(self, option: str) -> bool:
        return self.options.get(option) not in EMPTY

    def drop(self, name: str, reason: str) -> None:
        """Take a field out again, and say why, where it was set."""
        if name in self.fields.values:
            self.fields.drop(name)
            self.note(IDLE, name, reason)


def read_datasets(draft: Draft, entries: Any) -> None:
    """Every entry of the list becomes a dataset, a folder of one, or a note."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        draft.note(REFUSED, "data_backend_config", 'is no list of datasets; it is [{"id": ..., "instance_data_dir": ...}, ...]')
        return
    inherited = {name: draft.options[name] for name in INHERITED if draft.given(name)}
    pictures, conditions = [], {}
    for entry in entries:
        options = {DATASET_ALIASES.get(option_name(name), option_name(name)): value for name, value in entry.items()}
        one = DatasetDraft(options, draft.place, draft.notes)
        kind = str(options.get("dataset_type") or "image").lower()
        if kind in CACHES:
            one.note(IDLE, "dataset_type", "caches need no entry; theirs are kept by content below the run folders")
        elif kind == "conditioning":
            conditions[one.name] = one
        elif kind not in ("image", "eval"):
            one.note(REFUSED, "dataset_type", f"{kind} is not trained on here; take the dataset out")
        else:
            one.options = {name: value for name, value in inherited.items() if name not in options} | options
            pictures.append(one)
    for name in inherited:
        draft.note(TAKEN, name, "for datasets that do not say it")
    for one in pictures:
        try:
            _convert(one)
            _add_partners(one, conditions)
            _settle(one)
        except MISFITS as error:
            one.note(REFUSED, "dataset", f"{error}; correct it in the configuration")
        draft.datasets.append(one.fields)
    _about_the_others(pictures, conditions)


def _convert(one: DatasetDraft) -> None:
    drop_empty(one)
    one.put("id", one.name)
    kind = str(one.options.get("type") or "local").lower()
    if kind in DOWNLOADED:
        one.note(REFUSED, "type", f"{kind}: pictures are read from folders; download them and set type to local")
    for option, value in one.options.items():
        row = DATASET_OPTIONS.get(option)
        if row is None:
            if not (option in RENAMED_TABLE or option.startswith(("aws_", "csv_", "huggingface", "video", "audio"))):
                one.note(UNKNOWN, option, "is not known here")
        else:
            apply(one, option, value, row)
    if not one.given("instance_data_dir") and kind not in DOWNLOADED:
        one.note(REFUSED, "instance_data_dir", "is missing; give the folder with the pictures")


def _add_partners(one: DatasetDraft, conditions: dict[str, DatasetDraft]) -> None:
    """The folders of masks or references that this dataset names, or that name it."""
    named = one.options.get("conditioning_data")
    names = [named] if isinstance(named, str) else list(named or [])
    names += [name for name, other in conditions.items() if other.options.get("source_dataset_id") == one.name]
    for name in dict.fromkeys(names):
        if name not in conditions:
            one.note(REFUSED, "conditioning_data", f"there is no dataset {name!r} of type conditioning; correct the name")
            continue
        other = conditions[name]
        kind = str(other.options.get("conditioning_type") or "").lower()
        folder = str(one.place.find(str(other.options.get("instance_data_dir") or ".")))
        if kind in MASKS:
            one.put("mask_data_dir", folder)
            text = "mask_data_dir: masks are cropped with their pictures; there, random crops of the two differ"
            one.note(OTHERWISE, "conditioning_data", text)
        elif kind in REFERENCES:
            one.put("reference_data_dir", folder)
            one.put("reference_geometry", kind.removeprefix("reference_"))
            one.note(TAKEN, "conditioning_data", "reference_data_dir, reference_geometry")
        else:
            one.note(REFUSED, "conditioning_data", f"conditioning_type {kind!r} of {name!r} is not trained here; take it out")


def _settle(one: DatasetDraft) -> None:
    _settle_captions(one)
    _settle_sizes(one)
    _settle_crop(one)
    if one.get("dataset_type") == "eval":
        spec = DatasetSpec.model_construct(**one.fields.values)
        for name in changed(spec, NOT_FOR_EVALUATION):
            one.drop(name, "an eval dataset is shown as it is")
    for name, why in one.fields.drop_idle(DATASET):
        one.note(IDLE, name, why)


def _settle_captions(one: DatasetDraft) -> None:
    """Where captions come from, and what goes in front of them."""
    fields, prompt = one.fields, one.options.get("instance_prompt")
    strategy = str(one.options.get("caption_strategy") or "filename").lower().replace("instance_prompt", "instanceprompt")
    if is_on(one.options.get("only_instance_prompt")):
        strategy = "instanceprompt"
    if isinstance(prompt, list):
        if len(prompt) > 1:
            one.note(REFUSED, "instance_prompt", "one prompt is taken; write several as lines of .txt files, with textfile")
        prompt = prompt[0] if prompt else ""
    prompt = str(prompt or "").strip()
    if strategy == "instanceprompt":
        if not prompt:
            one.note(REFUSED, "instance_prompt", "is missing; caption_strategy instanceprompt needs it")
        fields.put("instance_prompt", prompt)
    elif is_on(one.options.get("prepend_instance_prompt")) and prompt:
        fields.put("caption_prefix", prompt)
        one.note(TAKEN, "instance_prompt", "caption_prefix")
    elif prompt and "instance_prompt" in one.options:
        one.note(IDLE, "instance_prompt", f"caption_strategy is {strategy}")
    table = one.options.get("parquet")
    if strategy == "parquet" and isinstance(table, dict):
        _settle_table(one, table)
        return
    try:
        fields.put("caption_strategy", strategy)
    except Unfit:
        one.note(REFUSED, "caption_strategy", f"{strategy} is not read here; write captions as .txt beside the pictures")
        return
    if strategy == "textfile" and not is_on(one.options.get("disable_multiline_split")):
        fields.put("multiline_captions", True)


def _settle_table(one: DatasetDraft, table: dict[str, Any]) -> None:
    path = one.place.find(str(table.get("path") or ""))
    suffix = Path(path).suffix.lower().lstrip(".")
    one.put("caption_strategy", suffix if suffix in ("jsonl", "csv") else "parquet")
    one.put("caption_table", str(path))
    for name in ("filename_column", "caption_column", "fallback_caption_column"):
        if table.get(name):
            column = table[name]
            one.put(name, str(column[0] if isinstance(column, list) else column))
    one.note(TAKEN, "parquet", "caption_table and its columns; sizes are read off the pictures")


def _settle_sizes(one: DatasetDraft) -> None:
    """maximum_image_size and target_downsample_size, which the original wants as a pair and of which it compares none."""
    fields = one.fields
    pair = ("maximum_image_size", "target_downsample_size")
    largest, target = (fields.get(name) for name in pair)
    if largest and target and fields.get("crop"):
        if target > largest:
            fields.put("maximum_image_size", target)
        text = "larger pictures only are brought to target_downsample_size; there, every picture is, and small ones grow"
        return one.note(OTHERWISE, "maximum_image_size", text)
    reason = "without crop; there, too" if largest and target else "the two go together"
    for name in pair:
        one.drop(name, reason)


def _settle_crop(one: DatasetDraft) -> None:
    """Crops are made once and kept; where the original crops anew in each epoch, several are."""
    fields = one.fields
    if fields.get("crop") and not one.given("crop_style"):
        fields.put("crop_style", "random")
        one.note(TAKEN, "crop_style", "not given: random, as in the original")
    elif not one.given("crop_style"):
        text = "not given: what must go is cut from both sides; there it is cut at random"
        one.note(OTHERWISE, "crop_style", text)
    if fields.get("crop_style") == "random" and is_on(one.options.get("vae_cache_clear_each_epoch")):
        fields.put("num_crops", 4)
        one.note(OTHERWISE, "vae_cache_clear_each_epoch", "num_crops 4: so many crops of each picture are kept and take turns")
    elif "vae_cache_clear_each_epoch" in one.options:
        one.note(IDLE, "vae_cache_clear_each_epoch", "each picture is encoded once")
    if fields.get("crop") and fields.get("crop_aspect") in LISTED_ASPECTS and not fields.get("crop_aspect_buckets"):
        fields.put("crop_aspect", "preserve")
        one.note(OTHERWISE, "crop_aspect", "preserve: crop_aspect_buckets lists no aspects to choose from")
    elif fields.get("crop_aspect") == "closest" and any(":" in line for line in fields.get("crop_aspect_buckets") or ()):
        fields.put("crop_aspect_buckets", tuple(line.partition(":")[0] for line in fields.get("crop_aspect_buckets")))
        one.note(IDLE, "crop_aspect_buckets", "the weights: the closest aspect is taken, however often")


def _about_the_others(pictures: list[DatasetDraft], conditions: dict[str, DatasetDraft]) -> None:
    """What the entries of masks and references say beside their folder; and those that nobody names."""
    named: set[str] = set()
    for one in pictures:
        data = one.options.get("conditioning_data")
        named |= {data} if isinstance(data, str) else set(data or ())
    for name, other in conditions.items():
        if name not in named and not other.options.get("source_dataset_id"):
            other.note(IDLE, "dataset_type", "no dataset has it as conditioning_data")
            continue
        own = [option for option in other.options if option not in RENAMED_TABLE]
        other.note(TAKEN, "instance_data_dir", "the folder of masks or references")
        rest = [option for option in own if option not in ("id", "instance_data_dir", "dataset_type", "conditioning_type")]
        if rest:
            other.notes.append(Note(IDLE, f"{name}: {', '.join(rest)}", None, "masks and references follow their pictures"))
