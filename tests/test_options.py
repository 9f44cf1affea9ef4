"""No dead knobs: every option of the optimiser and of the objective changes what is trained.

Each row is a job that differs from a base line in that one field (and in what the field needs to matter).
"""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from support import job_data, run_in_process
from trainer_core.job import FlowSpec, OptimizerSpec
from trainer_core.job_file import parse_job

BETA = {"flow_use_beta_schedule": True}
RANGE = {"flux_guidance_mode": "random-range"}
HUBER = {"loss_type": "huber"}
PERTURBED = {"input_perturbation": 0.3}

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
    "lr_num_cycles": (3, {"lr_scheduler": "sine"}),
}
ROWS = [("flow", field, *row) for field, row in FLOW.items()] + [("optimizer", f, *row) for f, row in OPTIMIZER.items()]


@pytest.fixture(scope="module")
def known() -> dict:
    """LoRAs of jobs that several rows start from."""
    return {}


def trained(out: Path, pictures: Path, cache: Path, part: str, fields: dict) -> dict:
    """The LoRA's tensors after three steps."""
    data = job_data(pictures, lora={"lora_save_precision": "fp32"}, training={"max_train_steps": 3}, **{part: fields})
    return load_file(run_in_process(parse_job(data), out, cache)["lora"])


@pytest.mark.parametrize(("part", "field", "value", "others"), ROWS, ids=lambda row: row if isinstance(row, str) else "")
def test_an_option_changes_what_is_trained(tmp_path, pictures, cache, known, part, field, value, others):
    base = str(others)
    if base not in known:
        known[base] = trained(tmp_path / "without", pictures, cache, part, others)
    with_it = trained(tmp_path / "with", pictures, cache, part, others | {field: value})
    assert any(not tensor.equal(known[base][name]) for name, tensor in with_it.items())


def test_the_table_has_every_option():
    assert FLOW.keys() == FlowSpec.model_fields.keys()
    assert OPTIMIZER.keys() == OptimizerSpec.model_fields.keys() - {"optimizer"}, "one optimiser so far"
