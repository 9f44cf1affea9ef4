"""The modulation layers on the host: the same training to rounding, in every kind of pass, and never where they are trained."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support import job_data, run_in_process
from trainer_core.errors import JobError, StopRequested
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.fill import nothing
from trainer_core.flux.load import load_transformer
from trainer_core.flux.modulation import Conditions, HostLinear, is_modulation, keep_on_host, look_ahead, steps_together
from trainer_core.flux.predict import predict_velocity
from trainer_core.job_file import parse_job
from trainer_core.setup import prepare

CPU = torch.device("cpu")
LORA = {"lora_save_precision": "fp32"}


def pico(dtype: torch.dtype, on_host: bool):
    transformer = load_transformer(PICO_FILES.transformer, dtype, CPU, None, is_modulation if on_host else nothing)
    if on_host:
        keep_on_host(transformer, CPU)
    return transformer


def inputs(batch: int):
    random = torch.Generator().manual_seed(0)
    shapes = ((batch, 16, 8, 8), (batch,), (batch, 32, 128), (batch, 64), (batch,))
    x, sigma, text, pooled, guidance = (torch.rand(shape, generator=random) for shape in shapes)
    return x, sigma, text, pooled, guidance


def test_all_modulation_layers_and_what_feeds_them_stay_on_the_host():
    layers = [module for module in pico(torch.float32, True).modules() if isinstance(module, HostLinear)]
    assert len(layers) == 2 * 2 + 4 + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_looked_ahead_or_not_the_prediction_is_the_same(dtype):
    x, sigma, text, pooled, guidance = inputs(3)
    expected = predict_velocity(pico(dtype, False), x, sigma, text, pooled, guidance)
    host = pico(dtype, True)
    assert torch.equal(predict_velocity(host, x, sigma, text, pooled, guidance), expected)
    others = [Conditions(sigma / number, guidance, pooled) for number in (2, 3)]
    look_ahead(host, [*others, Conditions(sigma, guidance, pooled)], "training")
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(
        predict_velocity(host, x, sigma, text, pooled, guidance), expected, rtol=tolerance, atol=tolerance
    )


def test_what_was_looked_ahead_to_is_not_computed_again():
    host = pico(torch.float32, True)
    x, sigma, text, pooled, guidance = inputs(2)
    look_ahead(host, [Conditions(sigma, guidance, pooled)], "training")
    look_ahead(host, [Conditions(sigma / 2, guidance, pooled)], "pictures")
    for module in host.modules():
        if isinstance(module, HostLinear):
            module.linear = None  # to use it would be an error
    predict_velocity(host, x, sigma, text, pooled, guidance)
    predict_velocity(host, x, sigma / 2, text, pooled, guidance)
    with pytest.raises(TypeError):
        predict_velocity(host, x, sigma / 4, text, pooled, guidance)


def test_steps_go_together_in_fixed_groups_of_few_samples():
    assert steps_together(0, 1) == steps_together(31, 1) == range(32) and steps_together(33, 1) == range(32, 64)
    assert steps_together(5, 12) == range(4, 6) and steps_together(5, 100) == range(5, 6)


def trained(pictures: Path, tmp_path: Path, cache: Path, wish: str, stop: int | None = None, **parts: dict) -> dict:
    training = {"max_train_steps": 4, "gradient_checkpointing": True, "gradient_accumulation_steps": 2} | parts.pop(
        "training", {}
    )
    base = {"mixed_precision": "no", "modulation_offload": wish} | parts.pop("base", {})
    data = job_data(pictures, lora=LORA, base=base, training=training, **parts)
    return run_in_process(parse_job(data), tmp_path / wish, cache, stop_before=stop)


def test_a_run_is_the_same_to_rounding_with_everything_on(pictures, tmp_path, cache):
    routes = [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": 4}]
    validation = {"num_validation_images": 1, "validation_num_inference_steps": 2, "validation_step_interval": 3}
    parts = {"routes": routes, "validation": validation}
    on_card, on_host = (trained(pictures, tmp_path, cache, wish, **parts) for wish in ("off", "on"))
    assert on_host["losses"] == pytest.approx(on_card["losses"], rel=1e-5)
    one, two = load_file(on_card["lora"]), load_file(on_host["lora"])
    assert all(torch.allclose(one[name], two[name], rtol=1e-3, atol=1e-5) for name in one)
    manifest = json.loads((Path(on_host["run_dir"]) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["modulation_on_host"] is True


def test_a_stopped_run_goes_on_to_the_same_bytes(pictures, tmp_path, cache):
    straight = trained(pictures, tmp_path / "straight", cache, "on")
    with pytest.raises(StopRequested):
        trained(pictures, tmp_path / "stopped", cache, "on", stop=3)
    resumed = trained(pictures, tmp_path / "stopped", cache, "on")
    one, two = load_file(straight["lora"]), load_file(resumed["lora"])
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_adapter_that_trains_modulation_needs_it_on_the_card(pictures):
    lora = {"flux_lora_target": "ai-toolkit"}
    with pytest.raises(JobError, match=r"modulation_offload is 'on'.*'ai-toolkit' trains modulation"):
        prepare(parse_job(job_data(pictures, lora=lora, base={"modulation_offload": "on"})))
    assert not prepare(parse_job(job_data(pictures, lora=lora))).modulation_on_host
