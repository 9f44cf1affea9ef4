"""No dead knobs: every option of the objective, the adapter, the optimiser and the loop changes what is trained or written.

Each row is a job that differs from a base line in that one field (and in what the field needs to matter).
"""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from support import job_data, run_in_process
from trainer_core.job_file import parse_job
from trainer_core.run_dir import RunDir
from trainer_core.specs.adapter import LoraSpec
from trainer_core.specs.base import MODEL_FILE_FIELDS, BaseModelSpec
from trainer_core.specs.dataset import DatasetSpec
from trainer_core.specs.flow import FlowSpec
from trainer_core.specs.optimizer import OptimizerSpec
from trainer_core.specs.training import TrainingSpec
from trainer_core.specs.tread import TreadRoute

BETA = {"flow_use_beta_schedule": True}
RANGE = {"flux_guidance_mode": "random-range"}
HUBER = {"loss_type": "huber"}
PERTURBED = {"input_perturbation": 0.3}
MASKED_TEXT = {"flux_attention_masked_training": True}

# field -> (value, what else both jobs have)
FLOW = {
    "flow_sigmoid_scale": (2.0, {}),
    "flow_schedule_shift": (3.0, {}),
    "flux_guidance_value": (3.5, {}),
    "caption_dropout_probability": (1.0, {}),
    "flow_schedule_auto_shift": (True, {}),
    "flow_use_uniform_schedule": (True, {}),
    "flow_use_beta_schedule": (True, {}),
    "flow_beta_schedule_alpha": (5.0, BETA),
    "flow_beta_schedule_beta": (5.0, BETA),
    "flow_custom_timesteps": ([0.5], {}),
    "flux_fast_schedule": (True, {}),
    "flux_guidance_mode": ("random-range", {}),
    "flux_guidance_min": (2.0, RANGE),
    "flux_guidance_max": (9.0, RANGE),
    "loss_type": ("smooth_l1", {}),
    "huber_schedule": ("constant", HUBER),
    "huber_c": (0.5, HUBER),
    "input_perturbation": (0.3, {}),
    "input_perturbation_steps": (2, PERTURBED),
    "flux_attention_masked_training": (True, {}),
    "t5_mask_mode": ("additive", MASKED_TEXT),
}
COSINE = {"lr_scheduler": "cosine"}
OPTIMIZER = {
    "learning_rate": (1e-2, {}),
    "lr_scheduler": ("linear", {}),
    "lr_warmup_steps": (2, {}),
    "adam_beta1": (0.5, {}),
    "adam_beta2": (0.5, {}),
    "adam_weight_decay": (1.0, {"learning_rate": 1e-2}),
    "max_grad_norm": (1e-9, {}),
    "grad_clip_method": ("value", {"max_grad_norm": 1e-3}),
    "lr_end": (5e-4, COSINE),
    "lr_power": (3.0, {"lr_scheduler": "polynomial"}),
    "lr_num_cycles": (2, {"lr_scheduler": "sine"}),
    "optimizer": ("optimi-lion", {}),
    "optimizer_config": ("eps=0.01", {}),
}
LOKR = {"lora_type": "lokr", "flux_lora_target": "all+ffs"}
LORA = {
    "lora_rank": (8, {}),
    "lora_alpha": (1.0, {}),
    "flux_lora_target": ("mmdit", {}),
    "lora_save_precision": ("bf16", {}),
    "lora_type": ("loha", {}),
    "lora_dropout": (0.5, {}),
    "peft_lora_target_modules": (["attn.to_k"], {"flux_lora_target": "custom", "peft_lora_target_modules": ["attn.to_q"]}),
    "lora_blocks": ("single 1-2", {}),
    "rank_pattern": (["single 0-1: 2"], {}),
    "lora_init_type": ("gaussian", {}),
    "lokr_factor": (4, LOKR),
    "lokr_factor_feed_forward": (4, LOKR),
    "lokr_full_matrix": (False, LOKR),
}
ROUTE = {"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -2}
ROUTES = {
    "selection_ratio": (0.25, {}),
    "start_layer_idx": (2, {}),
    "end_layer_idx": (-3, {}),
    "anneal_from": (0.5, {}),
}
TRAINING = {
    "max_train_steps": (3, {}),
    "train_batch_size": (1, {}),
    "gradient_accumulation_steps": (2, {}),
    "seed": (7, {}),
    "num_train_epochs": (1, {"max_train_steps": 0, "num_train_epochs": 2}),
}
DATASETS = {
    "caption_strategy": ("filename", {}),
    "instance_prompt": ("a dog", {"caption_strategy": "instanceprompt", "instance_prompt": "a cat"}),
    "resolution": ([48.0], {}),
    "repeats": (2, {}),
}
BASE = {"mixed_precision": ("bf16", {})}
PARTS = {
    "flow": FLOW,
    "optimizer": OPTIMIZER,
    "lora": LORA,
    "routes": ROUTES,
    "training": TRAINING,
    "datasets": DATASETS,
    "base": BASE,
}
# what needs files of its own, or changes what is written, shown or remembered rather than what is trained: where its test is
ELSEWHERE = {
    "init_lora": "test_init_lora.py",
    "keep_masked": "test_masks.py",
    "dataset_type": "test_evaluate.py",
    "is_regularisation_data": "test_regularisation.py",
    "mask_data_dir": "test_masks.py",
    "mask_background_weight": "test_masks.py",
    "mask_normalise_area": "test_masks.py",
    "assistant_lora_path": "test_init_lora.py",
    "assistant_lora_strength": "test_init_lora.py",
    "assistant_lora_inference_strength": "test_init_lora.py",
    "gradient_checkpointing": "test_run.py",
    "gradient_checkpointing_interval": "test_less_work.py",
    "torch_compile": "test_compiling.py",
    "checkpoint_step_interval": "test_run.py",
    "checkpoints_total_limit": "test_run.py",
    "log_interval": "test_loop.py",
    "use_ema": "test_loop.py",
    "ema_decay": "test_loop.py",
    "ema_update_interval": "test_loop.py",
    "ema_validation": "test_loop.py",
    "pretrained_model_name_or_path": "test_model_files.py",
    "allow_download": "test_model_files.py",
    "base_model_precision": "test_quantize.py",
    "quantized_matmul": "test_eight_bit.py",
    "text_encoder_1_precision": "test_quantize.py",
    "text_encoder_2_precision": "test_quantize.py",
    "quantize_via": "test_quantize.py",
    "offload_during_startup": "test_memory.py",
    "vae_enable_tiling": "test_memory.py",
    "vae_enable_slicing": "test_memory.py",
    "blocks_to_swap": "test_offload.py",
    "modulation_offload": "test_modulation.py",
    "attention_mechanism": "test_attention.py",
    "preview_decoder_path": "test_previews.py",
    "enable_activation_offloading": "test_offload.py",
    "skip_memory_check": "test_plan.py",
    **dict.fromkeys(("report_to", "tracker_project_name"), "test_trackers.py"),
    "num_devices": "test_processes.py",
    **dict.fromkeys(("disabled", "max_num_samples"), "test_index.py"),
    **dict.fromkeys(("vae_batch_size", "cache_size_limit"), "test_cache.py"),
    **dict.fromkeys(("resolution_type", "minimum_image_size", "maximum_image_size", "target_downsample_size"), "test_crops.py"),
    **dict.fromkeys(("minimum_aspect_ratio", "maximum_aspect_ratio", "crop", "crop_style", "crop_aspect"), "test_crops.py"),
    **dict.fromkeys(("crop_aspect_buckets", "num_crops", "horizontal_flip"), "test_crops.py"),
    "background": "test_images.py",
    "alpha_is_mask": "test_masks.py",
    **dict.fromkeys(("probability", "start_step", "end_step", "small_buckets", "data_backend_sampling"), "test_order.py"),
    **dict.fromkeys(("multiline_captions", "missing_caption", "caption_table", "filename_column"), "test_captions.py"),
    **dict.fromkeys(("caption_column", "fallback_caption_column", "trigger_word", "caption_prefix"), "test_captions.py"),
    **dict.fromkeys(("shuffle_tags", "tag_separator", "keep_tags", "wildcards_dir", "caption_variants"), "test_captions.py"),
    **dict.fromkeys(("reference_data_dir", "reference_geometry"), "test_references.py"),
}
NAMES = {"id", "instance_data_dir", "model_flavour", "device", *MODEL_FILE_FIELDS}  # which data, base and machine


@pytest.fixture(scope="module")
def known() -> dict:
    """LoRAs of jobs that several rows start from."""
    return {}


def trained(out: Path, pictures: Path, cache: Path, part: str, fields: dict[str, Any]) -> dict:
    """The LoRA's tensors after four steps; the manifest says what they were trained with."""
    lora = {"lora_save_precision": "fp32"}
    data = job_data(pictures, lora=lora, training={"max_train_steps": 4})
    if part in ("routes", "datasets"):
        data[part] = [(ROUTE if part == "routes" else data[part][0]) | fields]
    else:
        data[part] = data.get(part, {}) | fields
    result = run_in_process(parse_job(data), out, cache)
    shown = json.loads(RunDir(Path(result["run_dir"])).manifest_path.read_text())["job"][part]
    assert {field: (shown[0] if isinstance(shown, list) else shown)[field] for field in fields} == fields
    return load_file(result["lora"])


ROWS = [(part, field, value, others) for part, table in PARTS.items() for field, (value, others) in table.items()]


@pytest.mark.parametrize(("part", "field", "value", "others"), ROWS, ids=[f"{part}.{field}" for part, field, *_ in ROWS])
def test_an_option_changes_what_is_trained(tmp_path, pictures, cache, known, part, field, value, others):
    base = json.dumps([part == "routes", others])
    if base not in known:
        known[base] = trained(tmp_path / "without", pictures, cache, part, others)
    with_it = trained(tmp_path / "with", pictures, cache, part, others | {field: value})
    without = known[base]
    assert with_it.keys() != without.keys() or any(
        tensor.dtype != without[name].dtype or tensor.shape != without[name].shape or not tensor.equal(without[name])
        for name, tensor in with_it.items()
    )


def test_the_table_has_every_option():
    specs = {
        "flow": FlowSpec,
        "optimizer": OptimizerSpec,
        "lora": LoraSpec,
        "routes": TreadRoute,
        "training": TrainingSpec,
        "datasets": DatasetSpec,
        "base": BaseModelSpec,
    }
    for part, spec in specs.items():
        assert PARTS[part].keys() == spec.model_fields.keys() - ELSEWHERE.keys() - NAMES
    for field, file in ELSEWHERE.items():
        assert field in (Path(__file__).parent / file).read_text(encoding="utf-8"), f"{file} does not test {field}"
