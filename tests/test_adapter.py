"""The adapter: nothing at its start, complete in its file, and the same change wherever the file is loaded."""

import json

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file

from support import job_data
from trainer_core.adapter.build import add_lora
from trainer_core.adapter.lora_file import export_lora, inspect_lora
from trainer_core.adapter.targets import target_modules
from trainer_core.adapter.verify import verify_lora
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.flux.load import load_transformer, read_shape
from trainer_core.flux.predict import predict_velocity
from trainer_core.job import TrainJob
from trainer_core.job_file import parse_job

SHAPE = read_shape(PICO_FILES.transformer)


def base():
    return load_transformer(PICO_FILES.transformer, torch.float32, torch.device("cpu"))


def velocity(transformer) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    text, pooled = torch.randn(1, 8, SHAPE.t5_width, generator=random), torch.randn(1, SHAPE.clip_width, generator=random)
    with torch.no_grad():
        x = torch.randn(1, 16, 8, 8, generator=random)
        return predict_velocity(transformer, x, torch.tensor([0.5]), text, pooled, torch.tensor([3.0]))


def adapted(job: TrainJob, seed: int = 0):
    transformer = base()
    parameters = add_lora(transformer, job.lora, target_modules(transformer, job.lora.flux_lora_target), seed)
    return transformer, parameters


def moved(job: TrainJob):
    """An adapter as if it had been trained: B is no longer zero."""
    transformer, parameters = adapted(job)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=random))
    return transformer


@pytest.fixture
def job(pictures) -> TrainJob:
    lora = {"lora_rank": 4, "lora_alpha": 2.0, "flux_lora_target": "all+ffs", "lora_save_precision": "fp32"}
    return parse_job(job_data(pictures, lora=lora))


def test_a_new_adapter_changes_nothing_and_trains_only_itself(job):
    transformer, parameters = adapted(job)
    assert torch.equal(velocity(transformer), velocity(base()))
    assert all("lora_" in name and parameter.dtype == torch.float32 for name, parameter in parameters.items())
    assert len(parameters) == 2 * len(target_modules(base(), "all+ffs"))


def test_the_start_is_a_function_of_the_seed_and_leaves_the_global_state_alone(job):
    torch.manual_seed(123)
    _, first = adapted(job, seed=1)
    _, again = adapted(job, seed=1)
    _, other = adapted(job, seed=2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_file_is_complete_and_verified(job, tmp_path):
    path = tmp_path / "lora.safetensors"
    export_lora(path, moved(job), job, FLAVOURS["pico"], "run-1", 7)
    verification = verify_lora(path, SHAPE, target_modules(base(), "all+ffs"), 2.0)
    assert verification.complete and verification.keys == 3 * len(target_modules(base(), "all+ffs"))


def test_diffusers_loads_the_file_to_the_same_change(job, tmp_path):
    path = tmp_path / "lora.safetensors"
    trained = moved(job)
    export_lora(path, trained, job, FLAVOURS["pico"], "run-1", 7)
    fresh = base()
    state, alphas = FluxPipeline.lora_state_dict(str(path), return_alphas=True)
    FluxPipeline.load_lora_into_transformer(state, alphas, fresh)
    torch.testing.assert_close(velocity(fresh), velocity(trained), atol=1e-5, rtol=1e-5)
    assert (velocity(fresh) - velocity(base())).abs().max() > 1e-3


def test_damage_of_every_kind_is_found(job, tmp_path):
    path = tmp_path / "lora.safetensors"
    export_lora(path, moved(job), job, FLAVOURS["pico"], "run-1", 7)
    tensors = load_file(path)
    key = "transformer.transformer_blocks.0.attn.to_q"

    def problems(**changes) -> str:
        damaged = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
        save_file(damaged, tmp_path / "damaged.safetensors")
        verification = verify_lora(tmp_path / "damaged.safetensors", SHAPE, target_modules(base(), "all+ffs"), 2.0)
        assert not verification.complete
        return "\n".join(verification.problems)

    assert "no such layer" in problems(**{"base_model.model.x.lora_A.weight": torch.ones(4, 4)})
    assert "no such layer" in problems(**{"transformer.transformer_blocks.9.attn.to_q.alpha": torch.tensor(2.0)})
    assert "not finite" in problems(**{key + ".lora_A.weight": torch.full((4, 256), float("nan"))})
    assert "trained was 2.0" in problems(**{key + ".alpha": torch.tensor(4.0)})
    assert "the layer is 256 x 256" in problems(**{key + ".lora_A.weight": torch.ones(4, 128)})
    assert "the file lacks it" in problems(**{key + ".alpha": None})
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items() if "lora_B" in name}
    assert "changes nothing" in problems(**zeros)


def test_inspect_tells_rank_alpha_targets_norms_and_metadata(job, tmp_path):
    path = tmp_path / "lora.safetensors"
    trained = moved(job)
    export_lora(path, trained, job, FLAVOURS["pico"], "run-1", 7)
    report = inspect_lora(path)
    assert report["ranks"] == [4] and report["alphas"] == [2.0] and report["dtypes"] == ["float32"]
    assert report["targets"]["single_transformer_blocks.*.proj_mlp"] == 4
    assert report["targets"]["transformer_blocks.*.attn.to_out.0"] == 2
    tensors = load_file(path)
    key = "transformer_blocks.1.ff.net.2"
    change = 0.5 * tensors[f"transformer.{key}.lora_B.weight"] @ tensors[f"transformer.{key}.lora_A.weight"]
    assert report["norms"][key] == pytest.approx(change.norm().item(), rel=1e-4)
    assert report["metadata"]["flux_lora.run_id"] == "run-1"
    assert report["metadata"]["modelspec.architecture"] == "flux-1-pico/lora"
    assert parse_job(json.loads(report["metadata"]["flux_lora.job"])) == job
