"""Model files: names, shapes, loading."""

import json

import pytest
import torch
from diffusers import FluxTransformer2DModel
from foreign_adapters import to_diffusers
from safetensors.torch import save_file

from support import encode_text
from trainer_core import pico
from trainer_core.adapter.targets import TARGET_SUFFIXES, target_modules
from trainer_core.errors import JobError
from trainer_core.flux.files import PICO_FILES, fingerprint
from trainer_core.flux.flavours import FLAVOURS, SamplerDefaults
from trainer_core.flux.load import FluxShape, config, empty_transformer, load_transformer, read_shape
from trainer_core.flux.names import linear_names, norm_names, to_original
from trainer_core.flux.predict import predict_velocity
from trainer_core.flux.vae import load_vae

FULL_FLUX = FluxShape(num_double=19, num_single=38, width=3072, in_channels=64, t5_width=4096, clip_width=768, guidance=True)
TINY = FluxShape(num_double=1, num_single=2, width=128, in_channels=64, t5_width=16, clip_width=8, guidance=False)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny() -> FluxTransformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return FluxTransformer2DModel(**config(TINY)).eval()


def velocity(transformer: FluxTransformer2DModel) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    text, pooled = torch.randn(2, 5, 16, generator=random), torch.randn(2, 8, generator=random)
    x = torch.randn(2, 16, 6, 4, generator=random)
    with torch.no_grad():
        return predict_velocity(transformer, x, torch.tensor([0.2, 0.9]), text, pooled, torch.ones(2))


def test_the_table_names_every_weight_of_full_flux():
    names = {f"{n.diffusers}.{part}" for n in linear_names(19, 38, True) for part in ("weight", "bias")}
    names |= {f"{n.diffusers}.weight" for n in norm_names(19, 38)}
    assert names == set(empty_transformer(FULL_FLUX).state_dict())


def test_there_and_back_again_through_the_original_names(tiny):
    tensors = tiny.state_dict()
    back = to_diffusers(to_original(tensors, 1, 2, False), 1, 2, False)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("dialect", ["original", "with ComfyUI's prefix", "diffusers"])
def test_every_dialect_gives_the_same_model(tiny, tmp_path, dialect):
    tensors = tiny.state_dict() if dialect == "diffusers" else to_original(tiny.state_dict(), 1, 2, False)
    prefix = "model.diffusion_model." if "prefix" in dialect else ""
    path = tmp_path / "flux.safetensors"
    save_file({prefix + name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    assert read_shape(path) == TINY
    loaded = load_transformer(path, torch.float32, CPU)
    assert torch.equal(velocity(loaded), velocity(tiny))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_counts_of_adapted_layers_are_those_of_the_fact_sheet():
    full = empty_transformer(FULL_FLUX)
    counts = {name: len(target_modules(full, name)) for name in TARGET_SUFFIXES}
    assert counts == {
        "mmdit": 190,
        "all": 266,
        "all+ffs": 419,
        "context": 76,
        "context+ffs": 114,
        "ai-toolkit": 495,
        "tiny": 2,
        "nano": 1,
    }


def test_a_target_that_matches_nothing_says_so():
    with pytest.raises(JobError, match="flux_lora_target 'nano' matches no layer"):
        target_modules(empty_transformer(TINY), "nano")


def test_a_file_that_lacks_a_tensor_is_refused_by_name(tiny, tmp_path):
    tensors = to_original(tiny.state_dict(), 1, 2, False)
    del tensors["double_blocks.0.img_mlp.2.bias"]
    path = tmp_path / "flux.safetensors"
    save_file(tensors, path)
    with pytest.raises(JobError, match=r"lacks double_blocks\.0\.img_mlp\.2\.bias"):
        load_transformer(path, torch.float32, CPU)


def test_the_fingerprint_sees_a_changed_byte(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(1000))
    first = fingerprint(path)
    path.write_bytes(bytes(999) + b"\1")
    assert fingerprint(path) != first


def test_pico_is_a_small_flux_that_loads():
    shape = read_shape(PICO_FILES.transformer)
    assert (shape.num_double, shape.num_single, shape.width, shape.guidance) == (2, 4, 256, True)
    transformer = load_transformer(PICO_FILES.transformer, torch.bfloat16, CPU)
    assert sum(parameter.numel() for parameter in transformer.parameters()) < 10_000_000


def test_picos_encoders_give_what_its_transformer_takes():
    shape = read_shape(PICO_FILES.transformer)
    text, pooled, mask = encode_text(PICO_FILES, ["a red cat", "", "a red cat on a blue background with far more words " * 9])
    assert text.shape == (3, 32, shape.t5_width) and pooled.shape == (3, shape.clip_width)
    assert not torch.equal(text[0], text[1]) and not torch.equal(pooled[0], pooled[1])
    assert mask.dtype == torch.bool and mask.shape == (3, 32) and mask[2].all()
    assert 0 < mask[1].sum() < mask[0].sum() < 32 and not (mask[:, 1:] & ~mask[:, :-1]).any(), "words first, then padding"
    again, _, _ = encode_text(PICO_FILES, ["a red cat"])
    torch.testing.assert_close(again[0], text[0], atol=1e-5, rtol=1e-5)


def test_picos_vae_halves_three_times():
    vae = load_vae(PICO_FILES.vae, CPU)
    latent = vae.encode(torch.zeros(1, 3, 48, 80))
    assert latent.shape == (1, 16, 6, 10)
    assert vae.decode(latent).shape == (1, 3, 48, 80)


def test_pico_is_sampled_as_it_was_measured():
    measured = json.loads((pico.WEIGHTS_DIR / "recommended.json").read_text(encoding="utf-8"))
    flavour = FLAVOURS["pico"]
    assert (flavour.t5_max_length, flavour.clip_max_length) == (measured["max_length"],) * 2
    sampler = SamplerDefaults(measured["steps"], measured["guidance"], measured["cfg"], measured["shift"])
    assert flavour.sampler == sampler
