"""The base in fewer bits: which layers, how near to the whole base, and that a LoRA trains, resumes and exports on each."""

import json
import sys
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from support import encode_text, job_data, run_in_process
from trainer_core.adapter.build import add_adapter
from trainer_core.errors import JobError, StopRequested
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import empty_transformer, load_transformer, open_weights
from trainer_core.flux.predict import predict_velocity
from trainer_core.flux.quantize import (
    COMPILED,
    METHODS,
    UNQUANTISED,
    check_precision,
    dequantised,
    make_quantiser,
    stored_bytes,
    why_unusable,
)
from trainer_core.flux.text import EncoderFormat, load_clip, load_t5
from trainer_core.job_file import parse_job
from trainer_core.setup import prepare
from trainer_core.trainee import load_base, quantised_on

CPU = torch.device("cpu")
COMPILES = pytest.mark.slow  # quanto compiles its kernels for these: a minute
EVERY = [pytest.param(name, marks=COMPILES) if name in COMPILED else name for name in METHODS]
ERRORS = {  # the largest mean error of a weight, in parts of its mean size, that the number of bits explains
    "int8-quanto": 0.02,
    "int4-quanto": 0.2,
    "int2-quanto": 0.9,
    "fp8-quanto": 0.05,
    "nf4-bnb": 0.15,
    "int8-torchao": 0.02,
    "fp8-torchao": 0.05,
}


def quantised_pico(precision: str, dtype: torch.dtype = torch.bfloat16):
    return load_transformer(PICO_FILES.transformer, dtype, CPU, make_quantiser(precision, CPU))


def whole_layers(transformer: nn.Module) -> set[str]:
    return {name for name, module in transformer.named_modules() if type(module) is nn.Linear and is_plain(module.weight)}


def is_plain(weight: torch.Tensor) -> bool:
    return type(weight) is nn.Parameter and type(weight.data) is torch.Tensor


@pytest.mark.parametrize("precision", EVERY)
def test_all_but_the_embedders_and_the_last_projection_are_quantised(precision):
    transformer = quantised_pico(precision)
    every = {
        name
        for name, module in empty_transformer(open_weights(PICO_FILES.transformer).shape).named_modules()
        if isinstance(module, nn.Linear)
    }
    expected = {name for name in every if any(fnmatchcase(name, pattern) for pattern in UNQUANTISED)}
    assert expected == {
        "x_embedder",
        "context_embedder",
        "proj_out",
        *(f"time_text_embed.{part}_embedder.linear_{n}" for part in ("timestep", "text", "guidance") for n in (1, 2)),
    }
    assert whole_layers(transformer) == expected


@pytest.mark.parametrize("precision", EVERY)
def test_a_weight_is_as_near_to_the_files_as_its_bits_allow(precision):
    weights, transformer = open_weights(PICO_FILES.transformer), quantised_pico(precision)
    for layer in ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.3.proj_mlp", "norm_out.linear"):
        whole, near = weights.read(f"{layer}.weight").float(), dequantised(transformer.get_submodule(layer)).float()
        error = (near - whole).abs().mean() / whole.abs().mean()
        assert 0 < error < ERRORS[precision], (layer, error)


@pytest.mark.parametrize("precision", EVERY)
def test_a_lora_learns_resumes_exactly_and_exports_the_same_keys(precision, pictures, tmp_path, cache):
    data = job_data(
        pictures,
        base={"base_model_precision": precision},
        lora={"lora_save_precision": "fp32", "flux_lora_target": "all+ffs"},
        optimizer={"learning_rate": 3e-3},
        training={"max_train_steps": 8, "checkpoint_step_interval": 4},
    )
    straight = run_in_process(parse_job(data), tmp_path / "straight", cache)
    losses = straight["losses"]
    assert sum(losses[-4:]) < sum(losses[:4])
    manifest = json.loads((Path(straight["run_dir"]) / "manifest.json").read_text())
    assert manifest["job"]["base"]["base_model_precision"] == precision
    with pytest.raises(StopRequested):
        run_in_process(parse_job(data), tmp_path / "resumed", cache, stop_before=6)
    resumed = run_in_process(parse_job(data), tmp_path / "resumed", cache)
    one, two = load_file(straight["lora"]), load_file(resumed["lora"])
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    whole = run_in_process(
        parse_job(data | {"base": {"mixed_precision": "no"}, "training": data["training"] | {"max_train_steps": 1}}),
        tmp_path / "whole",
        cache,
    )
    assert load_file(whole["lora"]).keys() == one.keys()


def test_quantising_on_the_cpu_gives_what_quantising_on_the_card_gives(pictures, tmp_path):
    base = {"base_model_precision": "int8-quanto", "quantize_via": "cpu"}
    setup = prepare(parse_job(job_data(pictures, base=base)))
    transformer = load_base(setup, open_weights(setup.files.transformer))
    other = quantised_pico("int8-quanto", torch.float32)
    for layer in ("transformer_blocks.1.ff.net.2", "single_transformer_blocks.0.proj_out"):
        one, two = dequantised(transformer.get_submodule(layer)), dequantised(other.get_submodule(layer))
        assert one.device == setup.device and torch.equal(one.cpu(), two)


def test_a_loftq_run_starts_nearer_to_the_whole_base_and_exports_for_it(pictures, tmp_path, cache):
    def data(base: dict, init: str) -> dict:
        lora = {"lora_init_type": init, "lora_rank": 32, "flux_lora_target": "all+ffs"}
        return job_data(pictures, base=base, lora=lora, training={"max_train_steps": 2})

    def first_prediction(base: dict, init: str) -> torch.Tensor:
        setup = prepare(parse_job(data(base, init)))
        weights = open_weights(setup.files.transformer)
        transformer = load_base(setup, weights)
        add_adapter(transformer, setup.adapter, 0, unquantised=lambda layer: weights.read(f"{layer}.weight"))
        random = torch.Generator().manual_seed(0)
        x, text, pooled = (torch.randn(shape, generator=random) for shape in ((2, 16, 8, 8), (2, 32, 128), (2, 64)))
        with torch.no_grad():
            return predict_velocity(transformer, x, torch.tensor([0.3, 0.7]), text, pooled, torch.ones(2))

    nf4 = {"base_model_precision": "nf4-bnb"}
    whole = first_prediction({}, "default")
    plain, loftq = ((first_prediction(nf4, init) - whole).square().mean() for init in ("default", "loftq"))
    assert loftq < 0.85 * plain
    result = run_in_process(parse_job(data(nf4, "loftq")), tmp_path, cache)
    assert result["verified_keys"] == 135


def test_loftq_without_quantisation_says_what_to_do(pictures):
    with pytest.raises(JobError, match="this base is not quantised; quantise it, or choose"):
        prepare(parse_job(job_data(pictures, lora={"lora_init_type": "loftq"})))


def test_a_missing_package_is_named_with_the_command_that_gets_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)  # how Python marks a module that is not there
    with pytest.raises(JobError) as raised:
        check_precision("int8-torchao", "base.base_model_precision")
    assert str(raised.value).startswith("base.base_model_precision: 'int8-torchao' needs the package torchao 0.9 or newer (")
    assert str(raised.value).endswith("get it with: pip install -U torchao, or choose another precision")


@pytest.mark.parametrize("precision", ["int8-quanto", "nf4-bnb"])
def test_captions_encode_nearly_alike_with_quantised_text_encoders(precision, pictures, tmp_path, cache):
    captions = ["a ball 1", "a grinning face on a red background"]
    for load, path in ((load_t5, PICO_FILES.t5), (load_clip, PICO_FILES.clip_l)):
        whole, small = (load(path, torch.bfloat16, CPU, choice) for choice in ("no_change", precision))
        assert stored_bytes(small) < 0.9 * stored_bytes(whole)
    whole = encode_text(PICO_FILES, captions, EncoderFormat(torch.bfloat16))
    small = encode_text(PICO_FILES, captions, EncoderFormat(torch.bfloat16, precision, precision))
    for one, two in zip(whole[:2], small[:2], strict=True):
        error = (one - two).float().abs().mean() / one.float().abs().mean()
        assert 0 < error < (0.03 if precision == "int8-quanto" else 0.4)
    base = {"text_encoder_1_precision": precision, "text_encoder_2_precision": precision}
    training = {"max_train_steps": 1}
    whole_run = run_in_process(parse_job(job_data(pictures, training=training)), tmp_path, cache)
    small_run = run_in_process(parse_job(job_data(pictures, base=base, training=training)), tmp_path, cache)
    assert whole_run["losses"] != small_run["losses"]  # other entries of the cache, not those of the whole encoders


def test_layers_are_quantised_where_the_job_says():
    card = torch.device("cuda")
    assert quantised_on("accelerator", card) == card and quantised_on("cpu", card) == CPU


@pytest.mark.parametrize("precision", METHODS)
def test_a_package_that_is_too_old_is_told_with_its_version(precision):
    method = METHODS[precision]
    assert why_unusable(method) == ""
    assert why_unusable(replace(method, oldest="999")) == f"{version(method.package)} is installed"
