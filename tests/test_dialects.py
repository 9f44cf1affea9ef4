"""Adapter files in every naming: read to the same change of weight, and refused with a reason when they are something else."""

import logging
from dataclasses import replace

import pytest
import torch
from foreign_adapters import DIALECTS, MAKERS, change, diffusers_changes, keys, lora, random_layers
from safetensors.torch import save_file

from trainer_core.adapter.dialects import read_adapter
from trainer_core.adapter.initial import initial_factors
from trainer_core.errors import JobError
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import read_shape

SHAPE = read_shape(PICO_FILES.transformer)
D = SHAPE.width
QUERY = "transformer.transformer_blocks.0.attn.to_q"
FUSED = "lora_unet_double_blocks_0_img_attn_qkv"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "adapter.safetensors"


def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def parts_of(stem: str, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    suffixes = {"down": ".lora_A.weight", "up": ".lora_B.weight"}
    return {stem + suffixes.get(part, f".{part}"): tensor for part, tensor in parts.items()}


def refusal(path, tensors, shape=SHAPE) -> str:
    save_file(tensors, path)
    with pytest.raises(JobError) as error:
        read_adapter(path, shape)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_naming_of_a_lora_means_the_same_change(path, dialect):
    original = DIALECTS[dialect].original
    layers = random_layers(SHAPE, original, "lora")
    save_file(keys(DIALECTS[dialect], layers), path)
    changes = {layer: change(parts) for layer, parts in layers.items()}
    expected = diffusers_changes(changes, SHAPE) if original else changes
    adapter = read_adapter(path, SHAPE)
    assert adapter.kind == "lora" and list(adapter.modules) == list(expected)
    for name, factors in adapter.modules.items():
        torch.testing.assert_close(factors.delta(), expected[name], atol=1e-4, rtol=1e-4)
        assert factors.size() == expected[name].shape and factors.alpha == 6.0


@pytest.mark.parametrize("dialect", ["lycoris", "kohya", "bfl"])
@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "lora"])
def test_lokr_and_loha_mean_the_same_change_whole_and_taken_apart(path, dialect, kind):
    original = DIALECTS[dialect].original
    layers = random_layers(SHAPE, original, kind)
    save_file(keys(DIALECTS[dialect], layers), path)
    changes = {layer: change(parts) for layer, parts in layers.items()}
    expected = diffusers_changes(changes, SHAPE) if original else changes
    adapter = read_adapter(path, SHAPE)
    assert adapter.kind == kind.split()[0] and list(adapter.modules) == list(expected)
    for name, factors in adapter.modules.items():
        torch.testing.assert_close(factors.delta(), expected[name], atol=1e-4, rtol=1e-4)


def test_a_lokr_whose_first_factor_has_one_row_is_cut_inside_its_blocks(path):
    parts = {"lokr_w1": torch.randn(1, 4), "lokr_w2": torch.randn(3 * D, D // 4)}
    save_file(parts_of(FUSED, parts), path)
    modules = read_adapter(path, SHAPE).modules
    expected = torch.kron(parts["lokr_w1"], parts["lokr_w2"]).split(D)
    for name, rows in zip(("to_q", "to_k", "to_v"), expected, strict=True):
        assert torch.equal(modules[f"transformer_blocks.0.attn.{name}"].delta(), rows)


def test_a_fused_lokr_that_cannot_be_taken_apart_is_refused_by_its_layer(path):
    parts = {"lokr_w1": torch.randn(4, 4), "lokr_w2": torch.randn(3 * D // 4, D // 4)}
    message = refusal(path, parts_of(FUSED, parts))
    assert FUSED in message and "cannot be taken apart" in message and "or a LoRA" in message


def test_without_alpha_the_strength_is_one_and_layers_may_differ_in_rank(path):
    parts = {rank: lora(D, D, random(), alpha=None, rank=rank) for rank in (2, 8)}
    key = "transformer.transformer_blocks.{}.attn.to_q"
    save_file(parts_of(key.format(0), parts[2]) | parts_of(key.format(1), parts[8]), path)
    first, second = read_adapter(path, SHAPE).modules.values()
    assert (first.rank, first.alpha, second.rank, second.alpha) == (2, 2.0, 8, 8.0)
    torch.testing.assert_close(second.delta(), parts[8]["up"] @ parts[8]["down"])


def test_half_precision_is_read_as_float32(path):
    save_file(parts_of(QUERY, {name: tensor.bfloat16() for name, tensor in lora(D, D, random()).items()}), path)
    (factors,) = read_adapter(path, SHAPE).modules.values()
    assert {tensor.dtype for tensor in (*factors.tensors().values(), factors.delta())} == {torch.float32}


def test_the_names_of_xlabs_and_uso_are_read(path):
    random_ = random()
    double = {
        f"double_blocks.1.processor.{name}.{part}.weight": tensor
        for name, out in (("qkv_lora1", 3 * D), ("qkv_lora2", 3 * D), ("proj_lora1", D), ("proj_lora2", D))
        for part, tensor in lora(out, D, random_, alpha=None).items()
    }
    single = {
        f"single_blocks.2.processor.{name}.{part}.weight": tensor
        for name, out, into in (("qkv_lora", 3 * D, D), ("proj_lora", D, 5 * D))
        for part, tensor in lora(out, into, random_, alpha=None).items()
    }
    save_file(double | single, path)
    modules = read_adapter(path, SHAPE).modules
    assert len(modules) == 8 + 4 and "single_transformer_blocks.2.proj_mlp" not in modules
    stem = "single_blocks.2.processor.qkv_lora"
    whole = single[f"{stem}.up.weight"] @ single[f"{stem}.down.weight"]
    torch.testing.assert_close(modules["single_transformer_blocks.2.attn.to_k"].delta(), whole[D : 2 * D])


def test_text_encoders_are_left_out_with_one_warning(path, caplog):
    text = {f"lora_te1_text_model_encoder_layers_{n}_mlp_fc1.alpha": torch.tensor(1.0) for n in range(3)}
    text["text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight"] = torch.ones(4, 4)
    save_file(parts_of(QUERY, lora(D, D, random())) | text, path)
    with caplog.at_level(logging.WARNING):
        assert len(read_adapter(path, SHAPE).modules) == 1
    assert [
        record.message for record in caplog.records if "4 tensors for the text encoders" in record.message
    ] == caplog.messages
    assert "nothing for FLUX's transformer (4 tensors for text encoders)" in refusal(path, text)


@pytest.mark.parametrize(
    ("suffix", "meaning"),
    [
        (".dora_scale", "DoRA"),
        (".lora_magnitude_vector", "DoRA"),
        (".diff", "a whole change of a weight"),
        (".diff_b", "a change of a bias"),
        (".lora_B.bias", "a change of a bias"),
        (".oft_blocks", "OFT"),
        (".lokr_t2", "a convolution"),
    ],
)
def test_what_cannot_be_taken_over_is_named(path, suffix, meaning):
    message = refusal(path, parts_of(QUERY, lora(D, D, random())) | {QUERY + suffix: torch.ones(D)})
    assert meaning in message and QUERY + suffix in message and "1 of its 4 tensors" in message


def test_other_models_are_recognised_or_their_sizes_named(path):
    down = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight"
    assert "an adapter for Stable Diffusion 1, 2 or XL" in refusal(path, {down: torch.ones(4, 640)})
    assert "an adapter for Wan" in refusal(path, {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 8)})
    wide = refusal(path, parts_of(QUERY, lora(3072, 3072, random())))
    assert QUERY in wide and "3072 x 3072" in wide and f"{D} x {D}" in wide
    deep = refusal(path, parts_of("transformer.single_transformer_blocks.37.proj_out", lora(D, 5 * D, random())))
    assert "for a deeper model" in deep and "2 double and 4 single blocks" in deep
    deep = refusal(path, {"lora_unet_double_blocks_18_img_attn_qkv.lora_down.weight": torch.ones(4, D)})
    assert "for a deeper model" in deep
    guided = parts_of("diffusion_model.guidance_in.in_layer", lora(D, 256, random()))
    assert "no guidance embedder" in refusal(path, guided, replace(SHAPE, guidance=False))


def test_unknown_keys_are_listed(path):
    good = parts_of(QUERY, lora(D, D, random()))
    odd = {f"{QUERY}.lora_C.weight": torch.ones(2), "transformer.nowhere.lora_A.weight": torch.ones(2, 2)}
    message = refusal(path, good | odd)
    assert "names 2 tensors" in message and all(key in message for key in odd)
    assert "is no adapter: 1 tensors such as 'img_in.weight'" in refusal(path, {"img_in.weight": torch.ones(2, 2)})


def test_broken_layers_are_named_with_what_is_wrong(path):
    good = lora(D, D, random())

    def message(**changes) -> str:
        parts = {name: tensor for name, tensor in (good | changes).items() if tensor is not None}
        text = refusal(path, parts_of(QUERY, parts))
        assert QUERY in text
        return text

    assert "lacks up (it has alpha, down)" in message(up=None)
    assert "nothing but alpha" in message(up=None, down=None)
    assert "cannot be multiplied" in message(up=torch.ones(D, 3))
    assert "not finite" in message(up=torch.full((D, 4), float("nan")))
    assert "is no matrix" in message(up=torch.ones(D))
    assert "not one finite number" in message(alpha=torch.ones(2))
    assert "holds lokr and lora" in message(lokr_w1=torch.ones(2, 2))


def test_one_layer_must_not_be_adapted_twice_and_kinds_must_not_mix(path):
    query = parts_of(QUERY, lora(D, D, random()))
    assert "another key adapts too" in refusal(path, query | parts_of(FUSED, lora(3 * D, D, random())))
    assert "has up twice" in refusal(path, query | {f"{QUERY}.lora_up.weight": torch.ones(D, 4)})
    other = parts_of("transformer.transformer_blocks.1.attn.to_q", MAKERS["loha"](D, D, random()))
    assert "mixes loha and lora" in refusal(path, query | other)


def test_only_safetensors_that_exist_are_read(tmp_path):
    with pytest.raises(JobError, match="there is no file"):
        read_adapter(tmp_path / "none.safetensors", SHAPE)
    torch.save({}, tmp_path / "adapter.pt")
    with pytest.raises(JobError, match="is a pickle, which can run code when it is opened"):
        read_adapter(tmp_path / "adapter.pt", SHAPE)


def test_training_starts_only_from_its_own_kind_and_from_what_can_learn(path):
    parts = lora(D, D, random())
    save_file(parts_of(QUERY, parts), path)
    assert list(initial_factors(path, SHAPE, "lora").modules) == ["transformer_blocks.0.attn.to_q"]
    with pytest.raises(JobError, match=r"is a lora, and lora\.lora_type is 'lokr'; set lora_type to 'lora'"):
        initial_factors(path, SHAPE, "lokr")
    save_file(parts_of(QUERY, parts | {"alpha": torch.tensor(0.0)}), path)
    with pytest.raises(JobError, match="alpha 0 in 1 layers"):
        initial_factors(path, SHAPE, "lora")
