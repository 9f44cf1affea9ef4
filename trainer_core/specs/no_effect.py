"""Settings that would do nothing beside the others, as tables: which ones, when, why, and what to do.

Whoever moves a setting from its default expects something of it, so one that nothing would read is an error with the mend in
it. It is compared with the default and not asked whether it was given: a node always sends every field. What depends on
other parts of the job or on the files, and what waits while pictures are off, is only warned of (`idle.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .spec import Spec


class Row(NamedTuple):
    """These fields do nothing `when` this holds. `why` may name fields in braces; `mend` is what else than the default helps."""

    fields: tuple[str, ...]
    when: Callable[[Any], bool]
    why: str
    mend: str


def refuse_idle(spec: Spec, rows: Sequence[Row]) -> None:
    """ValueError that names every setting which is not at its default and does nothing."""
    lines = []
    for name, why, mend in _idle(spec, rows):
        default = type(spec).model_fields[name].default
        lines.append(f"{name} has no effect {why}; {mend}, or set it to {default!r}")
    if lines:
        raise ValueError("\n    ".join(lines))


def idle(spec: Spec, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Every setting that is not at its default and does nothing, each with the reason."""
    return [(name, why) for name, why, _ in _idle(spec, rows)]


def _idle(spec: Spec, rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    for fields, when, why, mend in rows:
        for name in changed(spec, fields) if when(spec) else ():
            yield name, why.format(**dict(spec)), mend


def changed(spec: Spec, fields: Sequence[str]) -> list[str]:
    """Those of the fields that are not at their default."""
    return [name for name in fields if getattr(spec, name) != type(spec).model_fields[name].default]


OPTIMIZER = (
    Row(
        ("lr_warmup_steps",),
        lambda spec: spec.lr_scheduler == "constant",
        "with lr_scheduler 'constant'",
        "choose 'constant_with_warmup'",
    ),
    Row(
        ("lr_end",),
        lambda spec: spec.lr_scheduler in ("constant", "constant_with_warmup"),
        "with lr_scheduler {lr_scheduler!r}, which stays at learning_rate",
        "choose one that falls, such as 'cosine'",
    ),
    Row(
        ("lr_power",),
        lambda spec: spec.lr_scheduler != "polynomial",
        "with lr_scheduler {lr_scheduler!r}",
        "choose 'polynomial'",
    ),
    Row(
        ("lr_num_cycles",),
        lambda spec: spec.lr_scheduler not in ("cosine_with_restarts", "sine"),
        "with lr_scheduler {lr_scheduler!r}",
        "choose 'cosine_with_restarts' or 'sine'",
    ),
)
FLOW = (
    Row(
        ("flow_sigmoid_scale",),
        lambda spec: (
            spec.flow_custom_timesteps
            or spec.flux_fast_schedule
            or spec.flow_use_uniform_schedule
            or spec.flow_use_beta_schedule
        ),
        "with flow_custom_timesteps, flux_fast_schedule, flow_use_uniform_schedule or flow_use_beta_schedule",
        "take that out",
    ),
    Row(
        ("flow_schedule_shift", "flow_schedule_auto_shift"),
        lambda spec: spec.flow_custom_timesteps or spec.flux_fast_schedule,
        "with flow_custom_timesteps or flux_fast_schedule, whose noise levels are as given",
        "take that out",
    ),
    Row(
        ("flow_beta_schedule_alpha", "flow_beta_schedule_beta"),
        lambda spec: not spec.flow_use_beta_schedule,
        "without flow_use_beta_schedule",
        "switch that on",
    ),
    Row(
        ("flux_guidance_value",),
        lambda spec: spec.flux_guidance_mode == "random-range",
        "with flux_guidance_mode 'random-range'",
        "choose 'constant'",
    ),
    Row(
        ("flux_guidance_min", "flux_guidance_max"),
        lambda spec: spec.flux_guidance_mode == "constant",
        "with flux_guidance_mode 'constant'",
        "choose 'random-range'",
    ),
    Row(
        ("huber_schedule", "huber_c"),
        lambda spec: spec.loss_type == "l2",
        "with loss_type 'l2'",
        "choose 'huber' or 'smooth_l1'",
    ),
    Row(
        ("input_perturbation_steps",),
        lambda spec: not spec.input_perturbation,
        "without input_perturbation",
        "set that above 0",
    ),
    Row(
        ("t5_mask_mode",),
        lambda spec: not spec.flux_attention_masked_training,
        "without flux_attention_masked_training",
        "switch that on",
    ),
)
TRAINING = (
    Row(
        ("gradient_checkpointing_interval",),
        # 1 says the same as the switch
        lambda spec: not spec.gradient_checkpointing and spec.gradient_checkpointing_interval > 1,
        "without gradient_checkpointing",
        "switch that on",
    ),
    Row(
        ("enable_activation_offloading",),
        lambda spec: not spec.gradient_checkpointing,
        "without gradient_checkpointing",
        "switch that on",
    ),
    Row(
        ("ema_decay", "ema_update_interval", "ema_validation"),
        lambda spec: not spec.use_ema,
        "without use_ema",
        "switch that on",
    ),
    Row(
        ("tracker_project_name",),
        lambda spec: spec.report_to not in ("wandb", "all"),
        "with report_to {report_to!r}",
        "choose 'wandb'",
    ),
)
VALIDATION = (
    Row(
        ("num_eval_images", "eval_timesteps", "eval_masked"),
        lambda spec: not spec.eval_steps_interval,
        "without eval_steps_interval",
        "set that above 0",
    ),
    Row(
        ("pretrained_evaluation_model_name_or_path",),
        lambda spec: spec.evaluation_type == "none",
        "with evaluation_type 'none'",
        "choose 'clip'",
    ),
    Row(
        ("num_validation_images",),
        lambda spec: bool(spec.validation_prompts or spec.user_prompt_library.strip()),
        "with validation_prompts or user_prompt_library, which are all pictured",
        "empty them",
    ),
    Row(
        (
            "validation_negative_prompt",
            "validation_no_cfg_until_timestep",
            "validation_cfg_threshold",
            "validation_cfg_passes",
        ),
        lambda spec: 0 <= spec.validation_guidance_real <= 1,
        "with validation_guidance_real {validation_guidance_real:g}, where real CFG is off",
        "set that above 1",
    ),
)
LORA = (
    Row(
        ("lokr_factor", "lokr_factor_feed_forward", "lokr_full_matrix"),
        lambda spec: spec.lora_type != "lokr",
        "with lora_type {lora_type!r}",
        "choose 'lokr'",
    ),
)
DATASET = (
    Row(
        ("mask_background_weight", "mask_normalise_area"),
        lambda spec: not (spec.mask_data_dir or spec.alpha_is_mask),
        "without mask_data_dir or alpha_is_mask",
        "give the folder with the masks",
    ),
    Row(
        ("mask_normalise_area",),
        lambda spec: bool(spec.mask_data_dir or spec.alpha_is_mask) and spec.mask_background_weight == 1,
        "with mask_background_weight 1, where the whole picture counts alike",
        "lower that",
    ),
    Row(
        ("crop_aspect", "crop_aspect_buckets"),
        lambda spec: not spec.crop,
        "without crop",
        "switch that on",
    ),
    Row(
        ("crop_aspect_buckets",),
        lambda spec: spec.crop and spec.crop_aspect not in ("closest", "random"),
        "with crop_aspect {crop_aspect!r}",
        "choose 'closest' or 'random'",
    ),
    Row(
        ("num_crops",),
        lambda spec: spec.crop_style != "random",
        "with crop_style {crop_style!r}",
        "choose 'random'",
    ),
    Row(
        ("multiline_captions",),
        lambda spec: spec.caption_strategy != "textfile",
        "with caption_strategy {caption_strategy!r}",
        "choose 'textfile'",
    ),
    Row(
        ("missing_caption",),
        lambda spec: spec.caption_strategy in ("filename", "instanceprompt"),
        "with caption_strategy {caption_strategy!r}, which gives every picture one",
        "choose another",
    ),
    Row(
        ("filename_column", "caption_column", "fallback_caption_column"),
        lambda spec: not spec.caption_table,
        "without caption_table",
        "give that file",
    ),
    Row(
        ("tag_separator", "keep_tags"),
        lambda spec: not spec.shuffle_tags,
        "without shuffle_tags",
        "switch that on",
    ),
    Row(
        ("caption_variants",),
        lambda spec: not (spec.shuffle_tags or spec.wildcards_dir),
        "without shuffle_tags or wildcards_dir",
        "give one of them",
    ),
    Row(
        ("wildcards_dir",),
        lambda spec: spec.caption_strategy == "filename",
        "with caption_strategy 'filename', which turns underscores into blanks",
        "choose another",
    ),
    Row(
        ("reference_geometry",),
        lambda spec: not spec.reference_data_dir,
        "without reference_data_dir",
        "give the folder with the references",
    ),
)
