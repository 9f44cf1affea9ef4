"""What becomes of the options of one dataset in SimpleTuner's multidatabackend.json: the table."""

from typing import Any

from .simpletuner_draft import EMPTY, IDLE, OTHERWISE, TAKEN, Row, Unfit, by, ignore, is_on, otherwise, refuse, take
from .simpletuner_model import later

INHERITED = (  # options of config.json that hold for datasets which do not say it
    "resolution",
    "resolution_type",
    "minimum_image_size",
    "maximum_image_size",
    "target_downsample_size",
    "caption_strategy",
    "instance_prompt",
    "prepend_instance_prompt",
    "only_instance_prompt",
    "instance_data_dir",
)
DATASET_ALIASES = {
    "is_regularization_data": "is_regularisation_data",
    "instance_data_root": "instance_data_dir",
    "disable": "disabled",
    "backend": "type",
}
DOWNLOADED = ("aws", "csv", "huggingface", "webshart", "memory")
RENAMED_TABLE = ("source_dataset_id", "conditioning_type")  # read where the dataset is that they are of
SEPARATORS = {"comma": ",", "period": ".", ",": ",", ".": "."}

_CACHES = "caches are kept by content, so nothing of them is set"
_FASTEST = "files are read and written as fast as they come"


def _folder(draft: Any, option: str, value: Any) -> None:
    draft.put("instance_data_dir", str(draft.place.find(str(value))))
    draft.note(TAKEN, option, f"instance_data_dir: {draft.get('instance_data_dir')}")


def _resolution(draft: Any, option: str, value: Any) -> None:
    values = value if isinstance(value, list) else [value]
    draft.put("resolution", tuple(float(one) for one in values))
    draft.note(TAKEN, option, "resolution")


def _crop_style(draft: Any, option: str, value: Any) -> None:
    draft.put("crop_style", {"centre": "center"}.get(str(value).lower(), str(value).lower()))
    text = "crop_style: crops are drawn once and kept" if draft.get("crop_style") == "random" else "crop_style"
    draft.note(TAKEN, option, text)


def _aspects(draft: Any, option: str, value: Any) -> None:
    if value in EMPTY or value == []:
        return draft.note(IDLE, option, "is empty")
    lines = []
    for entry in value:
        if isinstance(entry, dict):
            aspect = next((entry[name] for name in ("aspect", "aspect_bucket", "aspect_ratio") if name in entry), None)
            if aspect is None:
                raise Unfit(f"{entry} names no aspect")
            lines.append(f"{float(aspect):g}: {float(entry.get('weight', 1)):g}")
        else:
            lines.append(f"{float(entry):g}")
    draft.put("crop_aspect_buckets", tuple(lines))
    draft.note(TAKEN, option, "crop_aspect_buckets")


def _shuffle(draft: Any, option: str, value: Any) -> None:
    config = value if isinstance(value, dict) else {"enable": value}
    if not is_on(config.get("enable", True)):
        return draft.note(IDLE, option, "is off")
    separator = str(config.get("split_on", "comma"))
    if separator not in SEPARATORS:
        raise Unfit(f"split_on {separator} is not taken; use comma or period")
    count = int(config.get("count", 1)) + bool(config.get("include_original", True))
    draft.put("shuffle_tags", True)
    draft.put("tag_separator", SEPARATORS[separator])
    draft.put("keep_tags", int(config.get("position_start", 0)))
    draft.put("caption_variants", count)
    draft.note(OTHERWISE, option, f"shuffle_tags, caption_variants {count}: drawn by picture and caption, the same in each run")


def _probability(draft: Any, option: str, value: Any) -> None:
    if float(value) <= 0:
        draft.put("disabled", True)
        return draft.note(TAKEN, option, "disabled")
    draft.put("probability", value)
    draft.note(TAKEN, option, "probability")


def _disabled(draft: Any, option: str, value: Any) -> None:
    draft.put("disabled", is_on(value) or draft.get("disabled"))
    draft.note(TAKEN, option, "disabled")


def _epoch(draft: Any, option: str, value: Any) -> None:
    if not is_on(value) or (option == "start_epoch" and int(value) <= 1):
        return draft.note(IDLE, option, "is the whole run")
    raise Unfit("datasets come and go by steps; give start_step or end_step")


def _offset(draft: Any, option: str, value: Any) -> None:
    if is_on(value):
        raise Unfit("noise levels are the same for all datasets; take it out")
    draft.note(IDLE, option, "is off")


def _default(draft: Any, option: str, value: Any) -> None:
    draft.note(IDLE, option, "caches need no default")


DATASET_OPTIONS: dict[str, Row] = {
    "id": take("id"),
    "type": by(lambda draft, option, value: draft.note(TAKEN, option, "pictures are read from folders")),
    "dataset_type": take("dataset_type"),
    "disabled": by(_disabled),
    "instance_data_dir": by(_folder),
    "resolution": by(_resolution),
    "resolution_type": take("resolution_type"),
    "minimum_image_size": take("minimum_image_size"),
    "maximum_image_size": take("maximum_image_size"),
    "target_downsample_size": take("target_downsample_size"),
    "max_upscale_threshold": ignore("minimum_image_size leaves small pictures out"),
    "minimum_aspect_ratio": take("minimum_aspect_ratio"),
    "maximum_aspect_ratio": take("maximum_aspect_ratio"),
    "crop": take("crop"),
    "crop_style": by(_crop_style),
    "crop_aspect": take("crop_aspect"),
    "crop_aspect_buckets": by(_aspects),
    "caption_strategy": by(lambda draft, option, value: draft.note(TAKEN, option, "caption_strategy")),
    "instance_prompt": by(later),
    "prepend_instance_prompt": by(lambda draft, option, value: draft.note(TAKEN, option, "caption_prefix")),
    "only_instance_prompt": by(lambda draft, option, value: draft.note(TAKEN, option, "caption_strategy")),
    "disable_multiline_split": by(lambda draft, option, value: draft.note(TAKEN, option, "multiline_captions")),
    "caption_shuffle": by(_shuffle),
    "caption_filter_list": refuse("captions are taken as they are written; apply the list to the files"),
    "metadata_backend": ignore("sizes are read off the pictures, and remembered"),
    "parquet": by(later),
    "repeats": take("repeats", "extra passes, as there: one less than kohya's number"),
    "probability": by(_probability),
    "train_batch_size": ignore("one batch size is for all datasets"),
    "is_regularisation_data": otherwise(
        "is_regularisation_data",
        "the adapter learns at the same noise level as its target; there it learns at a thousandth of it",
    ),
    "conditioning_data": by(later),
    "conditioning_type": by(later),
    "source_dataset_id": by(later),
    "start_epoch": by(_epoch),
    "end_epoch": by(_epoch),
    "start_step": take("start_step"),
    "end_step": take("end_step"),
    "max_num_samples": take("max_num_samples"),
    "timestep_sampling_offset": by(_offset),
    "vae_cache_clear_each_epoch": by(later),
    "vae_cache_ondemand": ignore(_CACHES),
    "vae_cache_disable": ignore(_CACHES),
    "cache_dir_vae": ignore(_CACHES),
    "cache_dir": ignore(_CACHES),
    "cache_file_suffix": ignore(_CACHES),
    "hash_filenames": ignore(_CACHES),
    "scan_for_errors": ignore("damaged files are found, always"),
    "text_embeds": ignore(_CACHES),
    "image_embeds": ignore(_CACHES),
    "write_batch_size": ignore(_FASTEST),
    "read_batch_size": ignore(_FASTEST),
    "image_processing_batch_size": ignore(_FASTEST),
    "vae_batch_size": ignore("one vae_batch_size is for all datasets, in config.json"),
    "text_encoder_batch_size": ignore(_FASTEST),
    "skip_file_discovery": ignore("files are always looked at, and what was learned of them is remembered"),
    "preserve_data_backend_cache": ignore("files are always looked at, and what was learned of them is remembered"),
    "delete_unwanted_images": ignore("nothing of yours is ever deleted; the report names what is left out"),
    "delete_problematic_images": ignore("nothing of yours is ever deleted; the report names what is left out"),
    "slider_strength": refuse("sliders are not trained here; take it out"),
    "grounding": refuse("grounding is not trained here; take it out"),
    "conditioning": refuse("references are not generated here; give a folder of them as conditioning_data"),
    "video": ignore("pictures are trained on"),
    "audio": ignore("pictures are trained on"),
    "default": by(_default),
}
