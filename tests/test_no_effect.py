"""No setting does nothing in silence: within a part of the job that is an error, between parts a warning."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from support import job_data
from trainer_core.adapter.plan import plan_adapter
from trainer_core.errors import JobError
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import empty_transformer, read_shape
from trainer_core.idle import warn_of_idle
from trainer_core.job_file import parse_job, parse_part
from trainer_core.optimizer_check import check_optimizer
from trainer_core.setup import prepare
from trainer_core.specs import no_effect
from trainer_core.specs.adapter import LoraSpec
from trainer_core.specs.dataset import DatasetSpec
from trainer_core.specs.flow import FlowSpec
from trainer_core.specs.optimizer import OptimizerSpec
from trainer_core.specs.spec import Spec
from trainer_core.specs.training import TrainingSpec
from trainer_core.specs.validation import ValidationSpec

TABLES = {
    OptimizerSpec: no_effect.OPTIMIZER,
    FlowSpec: no_effect.FLOW,
    TrainingSpec: no_effect.TRAINING,
    ValidationSpec: no_effect.VALIDATION,
    LoraSpec: no_effect.LORA,
    DatasetSpec: no_effect.DATASET,
}
COURSES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "sine")
FOLDER = {"instance_data_dir": "."}
CROP, NAMED = FOLDER | {"crop": True}, FOLDER | {"caption_strategy": "filename"}
TABLE = FOLDER | {"caption_strategy": "csv", "caption_table": "t.csv"}
MASKS = FOLDER | {"mask_data_dir": "masks"}

# spec, field, value, the settings beside which it does nothing, those beside which it does something
CASES: list[tuple[type[Spec], str, Any, list[dict[str, Any]], list[dict[str, Any]]]] = [
    (OptimizerSpec, field, value, [{"lr_scheduler": c} for c in COURSES if c not in read], [{"lr_scheduler": c} for c in read])
    for field, value, read in (
        ("lr_warmup_steps", 10, COURSES[1:]),
        ("lr_end", 1e-5, COURSES[2:]),
        ("lr_power", 2.0, ("polynomial",)),
        ("lr_num_cycles", 3, ("cosine_with_restarts", "sine")),
    )
]
DENSITIES: list[dict[str, Any]] = [
    {"flow_custom_timesteps": (0.5,)},
    {"flux_fast_schedule": True},
    {"flow_use_uniform_schedule": True},
    {"flow_use_beta_schedule": True},
]
CASES += [
    (FlowSpec, "flow_sigmoid_scale", 2.0, DENSITIES, [{}]),
    (FlowSpec, "flow_schedule_shift", 3.0, DENSITIES[:2], [{}, *DENSITIES[2:]]),
    (FlowSpec, "flow_schedule_auto_shift", True, DENSITIES[:2], [{}, *DENSITIES[2:]]),
    (FlowSpec, "flow_beta_schedule_alpha", 3.0, [{}, *DENSITIES[:3]], DENSITIES[3:]),
    (FlowSpec, "flow_beta_schedule_beta", 3.0, [{}, *DENSITIES[:3]], DENSITIES[3:]),
    (FlowSpec, "flux_guidance_value", 3.5, [{"flux_guidance_mode": "random-range"}], [{}]),
    (FlowSpec, "flux_guidance_min", 2.0, [{}], [{"flux_guidance_mode": "random-range"}]),
    (FlowSpec, "flux_guidance_max", 9.0, [{}], [{"flux_guidance_mode": "random-range"}]),
    (FlowSpec, "huber_schedule", "constant", [{}], [{"loss_type": "huber"}, {"loss_type": "smooth_l1"}]),
    (FlowSpec, "huber_c", 0.5, [{}], [{"loss_type": "huber"}, {"loss_type": "smooth_l1"}]),
    (FlowSpec, "input_perturbation_steps", 10, [{}], [{"input_perturbation": 0.1}]),
    (FlowSpec, "t5_mask_mode", "additive", [{}], [{"flux_attention_masked_training": True}]),
    (TrainingSpec, "gradient_checkpointing_interval", 2, [{"gradient_checkpointing": False}], [{}]),
    (TrainingSpec, "enable_activation_offloading", True, [{"gradient_checkpointing": False}], [{}]),
    (TrainingSpec, "ema_decay", 0.9, [{}], [{"use_ema": True}]),
    (TrainingSpec, "ema_update_interval", 2, [{}], [{"use_ema": True}]),
    (TrainingSpec, "ema_validation", "comparison", [{}], [{"use_ema": True}]),
    (
        TrainingSpec,
        "tracker_project_name",
        "mine",
        [{}, {"report_to": "tensorboard"}],
        [{"report_to": c} for c in ("wandb", "all")],
    ),
    (ValidationSpec, "eval_masked", True, [{}], [{"eval_steps_interval": 10}]),
    (ValidationSpec, "num_eval_images", 4, [{}], [{"eval_steps_interval": 10}]),
    (ValidationSpec, "eval_timesteps", 2, [{}], [{"eval_steps_interval": 10}]),
    (ValidationSpec, "pretrained_evaluation_model_name_or_path", "a/clip", [{}], [{"evaluation_type": "clip"}]),
    (ValidationSpec, "num_validation_images", 0, [{"validation_prompts": ("a cat",)}], [{}]),
    (
        ValidationSpec,
        "validation_negative_prompt",
        "blurry",
        [{"validation_guidance_real": 1.0}, {"validation_guidance_real": 0.0}],
        [{}, {"validation_guidance_real": 3.0}],
    ),
    *(
        (ValidationSpec, field, value, [{"validation_guidance_real": 1.0}], [{}, {"validation_guidance_real": 3.0}])
        for field, value in (
            ("validation_no_cfg_until_timestep", 2),
            ("validation_cfg_threshold", 0.9),
            ("validation_cfg_passes", "two"),
        )
    ),
    *(
        (LoraSpec, field, value, [{}, {"lora_type": "loha"}], [{"lora_type": "lokr"}])
        for field, value in (("lokr_factor", 4), ("lokr_factor_feed_forward", 4), ("lokr_full_matrix", False))
    ),
    (DatasetSpec, "mask_background_weight", 0.5, [FOLDER], [MASKS, FOLDER | {"alpha_is_mask": True}]),
    (DatasetSpec, "mask_normalise_area", True, [FOLDER, MASKS | {"mask_background_weight": 1.0}], [MASKS]),
    (DatasetSpec, "crop_aspect", "preserve", [FOLDER], [CROP]),
    (DatasetSpec, "crop_aspect_buckets", ("1.5",), [FOLDER, CROP], [CROP | {"crop_aspect": "closest"}]),
    (DatasetSpec, "num_crops", 3, [FOLDER], [FOLDER | {"crop_style": "random"}]),
    (DatasetSpec, "multiline_captions", True, [NAMED], [FOLDER]),
    (DatasetSpec, "missing_caption", "skip", [NAMED], [FOLDER, TABLE]),
    *(
        (DatasetSpec, field, "other", [FOLDER], [TABLE])
        for field in ("filename_column", "caption_column", "fallback_caption_column")
    ),
    (DatasetSpec, "tag_separator", ";", [FOLDER], [FOLDER | {"shuffle_tags": True}]),
    (DatasetSpec, "keep_tags", 1, [FOLDER], [FOLDER | {"shuffle_tags": True}]),
    (DatasetSpec, "caption_variants", 3, [FOLDER], [FOLDER | {"shuffle_tags": True}, FOLDER | {"wildcards_dir": "w"}]),
    (DatasetSpec, "wildcards_dir", "w", [NAMED], [FOLDER]),
    (DatasetSpec, "reference_geometry", "loose", [FOLDER], [FOLDER | {"reference_data_dir": "r"}]),
]


@pytest.mark.parametrize(
    ("spec", "field", "value", "idle", "in_use"), CASES, ids=[f"{case[0].__name__}.{case[1]}" for case in CASES]
)
def test_a_setting_that_does_nothing_is_refused_and_its_default_never(spec, field, value, idle, in_use):
    default = spec.model_fields[field].default
    for others in idle:
        with pytest.raises(ValidationError) as refused:
            spec(**others, **{field: value})
        assert f"{field} has no effect with" in str(refused.value) and f", or set it to {default!r}" in str(refused.value)
        spec(**others, **{field: default})  # a node sends every field
    for others in in_use:
        assert getattr(spec(**others, **{field: value}), field) == value


def test_the_cases_are_those_of_the_tables():
    tabled = {(spec, field) for spec, rows in TABLES.items() for row in rows for field in row.fields}
    assert tabled == {(spec, field) for spec, field, *_ in CASES}


def test_all_of_them_are_named_at_once_with_their_place_in_the_job(pictures):
    data = job_data(pictures, optimizer={"lr_power": 2.0, "lr_end": 1e-5}, flow={"huber_c": 0.5})
    with pytest.raises(JobError) as refused:
        parse_job(data)
    said = str(refused.value)
    assert "job.optimizer: lr_end has no effect with lr_scheduler 'constant_with_warmup', which stays at learning_rate" in said
    assert (
        "\n    lr_power has no effect with lr_scheduler 'constant_with_warmup'; choose 'polynomial', or set it to 1.0" in said
    )
    assert "job.flow: huber_c has no effect with loss_type 'l2'; choose 'huber' or 'smooth_l1', or set it to 0.1" in said


# Arguments of the optimisers

SPEED = "use_speed=true,d_limiter=false"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"optimizer": "optimi-lion", "optimizer_config": "decouple_lr=true"},
            "decouple_lr has no effect without weight decay",
        ),
        ({"optimizer": "prodigy", "optimizer_config": "weight_decay_by_lr=false"}, "set adam_weight_decay above 0"),
        ({"optimizer": "prodigy", "optimizer_config": "use_schedulefree=false,schedulefree_c=8"}, "without use_schedulefree"),
        ({"optimizer": "prodigy", "optimizer_config": SPEED}, "d_limiter has no effect with use_speed"),
        ({"optimizer": "adamw_schedulefree", "optimizer_config": "weight_lr_power=1"}, "give it lr_warmup_steps, or leave"),
    ],
)
def test_an_argument_of_the_optimiser_that_does_nothing_is_refused(fields, said):
    with pytest.raises(JobError, match=said):
        check_optimizer(OptimizerSpec(learning_rate=1.0, **fields), torch.device("cpu"))


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "optimi-lion", "optimizer_config": "decouple_lr=true", "adam_weight_decay": 1e-4},
        {"optimizer": "optimi-lion", "optimizer_config": "decouple_lr=false"},
        {"optimizer": "adamw_schedulefree", "optimizer_config": "weight_lr_power=1", "lr_warmup_steps": 5},
    ],
)
def test_an_argument_that_does_something_or_is_at_its_default_is_taken(fields):
    check_optimizer(OptimizerSpec(**fields), torch.device("cpu"))


# Between the parts, and with the base


def test_what_only_the_whole_job_can_tell_is_warned_of_once(pictures, caplog):
    route = {"start_layer_idx": 1, "end_layer_idx": 2, "keep_masked": False}
    training = {"use_ema": True, "ema_validation": "comparison"}
    setup = prepare(parse_job(job_data(pictures, routes=[route], training=training)))
    assert [record.getMessage() for record in caplog.records] == [
        "routes.0.keep_masked has no effect: no dataset has masks",
        "training.ema_validation has no effect: validation.num_validation_images is 0, so there are no pictures",
    ]
    caplog.clear()
    settings = {"validation_seed": 7, "validation_step_interval": 5, "validation_guidance": 4.0}
    job = parse_job(job_data(pictures, validation=settings))
    warn_of_idle(job, setup.shape, setup.sampler, num_prompts=0)
    evaluated = job.model_copy(update={"validation": job.validation.model_copy(update={"eval_steps_interval": 5})})
    warn_of_idle(evaluated, setup.shape, setup.sampler, num_prompts=0)
    assert [record.getMessage().split(" has no effect: ")[0] for record in caplog.records] == [
        *("validation.validation_guidance", "validation.validation_seed", "validation.validation_step_interval"),
        *("validation.validation_guidance", "validation.validation_step_interval"),
    ]
    caplog.clear()
    flow, validation = {"flux_guidance_value": 3.5}, {"num_validation_images": 1, "validation_negative_prompt": "blurry"}
    job = parse_job(job_data(pictures, flow=flow, validation=validation | {"validation_guidance": 4.0}))
    warn_of_idle(job, setup.shape, setup.sampler, num_prompts=1)
    assert not caplog.records, "pico has the embedder, and real CFG is on"
    warn_of_idle(job, replace(setup.shape, guidance=False), replace(setup.sampler, guidance_real=1.0), num_prompts=1)
    assert [record.getMessage().split(" has no effect")[0] for record in caplog.records] == [
        "flow.flux_guidance_value",
        "validation.validation_guidance",
        "validation.validation_negative_prompt",
    ]
    caplog.clear()
    judged = {"id": "judged", "dataset_type": "eval", "instance_data_dir": str(pictures), "alpha_is_mask": True}
    job = parse_job(job_data(pictures, datasets=[FOLDER, judged], validation={"eval_steps_interval": 5}))
    warn_of_idle(job, setup.shape, setup.sampler, num_prompts=0)
    (record,) = caplog.records
    assert "datasets.1.alpha_is_mask has no effect" in record.getMessage()


def test_a_job_of_defaults_is_told_nothing(pictures, caplog):
    prepare(parse_job({"datasets": [{"instance_data_dir": str(pictures)}], "routes": [{"end_layer_idx": -1}]}))
    assert not [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"lora_rank": 8, "lora_alpha": 4.0, "rank_pattern": ("single 0: 4",)}, ["lora_rank", "lora_alpha", "rank_pattern"]),
        ({"lora_rank": 1024, "lokr_full_matrix": False}, ["lora_rank"]),
        ({"lora_rank": 2, "lokr_full_matrix": False}, []),
        ({"flux_lora_target": "all", "lokr_factor_feed_forward": 4}, ["lokr_factor_feed_forward"]),
        ({"flux_lora_target": "custom", "peft_lora_target_modules": ("ff.net.2",), "lokr_factor": 4}, ["lokr_factor"]),
        ({"lokr_factor": 4, "lokr_factor_feed_forward": 4}, []),
        ({}, []),
    ],
)
def test_what_a_lokr_of_these_layers_has_no_use_for_is_warned_of(fields, named, caplog):
    skeleton = empty_transformer(read_shape(PICO_FILES.transformer))
    plan_adapter(skeleton, LoraSpec(**{"lora_type": "lokr", "flux_lora_target": "all+ffs"} | fields))
    assert [record.getMessage().split(" has no effect")[0] for record in caplog.records] == [f"lora.{name}" for name in named]


# A part alone


def test_a_part_is_judged_without_the_others():
    """As a node has it: an evaluation is asked for on one node, and its pictures are given on another."""
    assert parse_part("validation", {"eval_steps_interval": 100}, "ValidationConfig").eval_steps_interval == 100
    (dataset,) = parse_part("datasets", [FOLDER | {"dataset_type": "eval"}], "DatasetBucket")
    assert dataset.dataset_type == "eval"


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        (
            "optimizer",
            {"lr_powr": 2.0},
            r"^Node is not valid:\n  job\.optimizer: unknown field 'lr_powr', did you mean 'lr_power'",
        ),
        (
            "datasets",
            [{"repeats": -1}],
            r"job\.datasets\.0\.instance_data_dir: is missing\n  job\.datasets\.0\.repeats: .*got -1",
        ),
        ("flow", {"huber_c": 0.5}, r"job\.flow: huber_c has no effect"),
    ],
)
def test_a_wrong_part_is_refused_in_the_words_of_the_job(part, value, said):
    with pytest.raises(JobError, match=said):
        parse_part(part, value, "Node")
