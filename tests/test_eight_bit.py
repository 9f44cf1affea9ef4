"""Products of 8-bit numbers: as exact as their bits allow, in both directions, and what a LoRA learns on them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from support import CPU, job_data, run_in_process
from trainer_core.errors import JobError, StopRequested
from trainer_core.flux.eight_bit import FEW, EightBitLinear
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import load_transformer, open_weights
from trainer_core.flux.quantize import dequantised, make_quantiser
from trainer_core.job_file import parse_job
from trainer_core.setup import prepare
from trainer_core.specs.base import EIGHT_BIT_KEPT
from trainer_core.trainee import load_base

ERRORS = {"int8-torchao": 0.012, "fp8-torchao": 0.045}  # of a product, in parts of its size: 7 bits and a sign, or 3 and a sign


def layers(precision: str, rows: int, columns: int) -> tuple[nn.Linear, EightBitLinear]:
    """The same numbers: only kept in 8 bits, and multiplied in them, too."""
    torch.manual_seed(0)
    kept = make_quantiser(precision, CPU).quantise(nn.Linear(columns, rows).requires_grad_(False))
    return kept, EightBitLinear(kept)


@pytest.mark.parametrize("precision", EIGHT_BIT_KEPT)
def test_products_and_gradients_are_those_of_the_kept_numbers_to_eight_bits(precision):
    kept, products = layers(precision, 96, 64)
    inputs = [torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    outputs = [layer(given) for layer, given in zip((kept, products), inputs, strict=True)]
    weights = torch.randn(2, 40, 96, generator=torch.Generator().manual_seed(2))
    for output in outputs:
        (output * weights).sum().backward()
    for whole, eight in (outputs, [given.grad for given in inputs]):
        error = ((eight - whole).square().mean() / whole.square().mean()).sqrt()
        assert 0 < error < ERRORS[precision]


def test_an_integer_product_is_the_one_of_torch_s_integer_units():
    kept, products = layers("int8-torchao", 96, 64)
    given = torch.randn(FEW, 64, generator=torch.Generator().manual_seed(1))
    scale = given.abs().amax(1, keepdim=True) / 127
    numbers, weight_scale = kept.weight.qdata, kept.weight.scale.reshape(-1)
    expected = torch._int_mm((given / scale).round().to(torch.int8), numbers.t()) * scale * weight_scale + kept.bias
    assert torch.equal(products(given), expected)


@pytest.mark.parametrize("precision", EIGHT_BIT_KEPT)
def test_a_row_of_zeros_and_few_rows_are_multiplied_as_well(precision):
    kept, products = layers(precision, 32, 32)
    given = torch.zeros(FEW, 32)
    assert torch.equal(products(given), kept.bias.expand(FEW, 32))
    few = torch.randn(FEW - 1, 32)
    assert torch.allclose(products(few), kept(few), atol=1e-6)


def test_the_base_of_a_job_multiplies_in_eight_bits_where_it_keeps_them_and_nowhere_else(pictures):
    setup = prepare(parse_job(job_data(pictures, base={"base_model_precision": "int8-torchao", "quantized_matmul": True})))
    transformer = load_base(setup, open_weights(setup.files.transformer))
    kept = load_transformer(PICO_FILES.transformer, torch.float32, CPU, make_quantiser("int8-torchao", CPU))
    eight = {name for name, module in transformer.named_modules() if isinstance(module, EightBitLinear)}
    others = {name for name, module in transformer.named_modules() if type(module) is nn.Linear}
    assert "single_transformer_blocks.0.proj_mlp" in eight and "x_embedder" in others
    for name in eight:
        assert torch.equal(dequantised(transformer.get_submodule(name)), dequantised(kept.get_submodule(name)))
    assert eight | others == {name for name, module in kept.named_modules() if isinstance(module, nn.Linear)}


def trained(pictures: Path, folder: Path, base: dict, stop_before: int | None = None) -> dict:
    """The result of twelve steps, every block recomputed."""
    training = {"max_train_steps": 12, "gradient_checkpointing": True}
    data = job_data(pictures, base=base, lora={"lora_save_precision": "fp32"}, training=training)
    return run_in_process(parse_job(data), folder, folder.parent / "cache", stop_before)


@pytest.fixture(scope="module")
def whole_losses(pictures, tmp_path_factory) -> list[float]:
    return trained(pictures, tmp_path_factory.mktemp("whole") / "runs", {})["losses"]


@pytest.mark.parametrize("precision", EIGHT_BIT_KEPT)
def test_a_lora_learns_on_them_as_on_the_whole_base_and_resumes_exactly(precision, pictures, whole_losses, tmp_path):
    base = {"base_model_precision": precision, "quantized_matmul": True}
    straight = trained(pictures, tmp_path / "straight", base)
    assert straight["losses"] != whole_losses
    assert sum(straight["losses"]) == pytest.approx(sum(whole_losses), rel=0.01)
    with pytest.raises(StopRequested):
        trained(pictures, tmp_path / "resumed", base, stop_before=7)
    resumed = trained(pictures, tmp_path / "resumed", base)
    assert Path(resumed["lora"]).read_bytes() == Path(straight["lora"]).read_bytes()


def test_a_compiled_layer_multiplies_the_same_in_one_graph():
    _, products = layers("int8-torchao", 96, 64)
    compiled = torch.compile(products, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (40, 64):
        inputs = [torch.randn(rows, 64, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
        outputs = [layer(given) for layer, given in zip((products, compiled), inputs, strict=True)]
        for output in outputs:
            output.square().sum().backward()
        assert torch.allclose(*outputs, rtol=1e-6) and torch.allclose(*(given.grad for given in inputs), rtol=1e-6)


def test_products_in_eight_bits_need_numbers_kept_so():
    with pytest.raises(JobError, match="choose 'int8-torchao' or 'fp8-torchao', or turn it off"):
        parse_job(
            {"datasets": [{"instance_data_dir": "x"}], "base": {"quantized_matmul": True, "base_model_precision": "nf4-bnb"}}
        )
