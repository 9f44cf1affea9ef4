"""Every dialect of a FLUX gives the same model, and of every other file it is said what it is."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from model_files import (
    CPU,
    FP8,
    ORIGINAL,
    SHAPE,
    checkpoint,
    in_diffusers,
    long_clip,
    original,
    prefixed,
    scaled_fp8,
    unpacked,
    write,
    write_gguf,
    write_pipeline,
    write_sharded,
)
from safetensors.torch import load_file
from torch import Tensor

from support import encode_text, job_data, run_in_process
from trainer_core.errors import JobError
from trainer_core.flux.dialects import open_clip, open_t5, open_transformer
from trainer_core.flux.files import PICO_FILES, ModelFiles, fingerprint
from trainer_core.flux.load import load_transformer, read_shape
from trainer_core.flux.predict import predict_velocity
from trainer_core.flux.resolve import resolve_files
from trainer_core.flux.tensors import open_tensors
from trainer_core.flux.text import load_clip, load_t5, load_tokenizer
from trainer_core.flux.vae import FLUX_SCALE, FLUX_SHIFT, FLUX_VAE, load_vae, tiny_to_diffusers
from trainer_core.job_file import parse_job
from trainer_core.specs.base import BaseModelSpec

CAPTIONS = ["a red cat", "two blue balls in the snow"]
TOKENIZERS = {f"{name}_tokenizer_path": str(PICO_FILES.clip_tokenizer) for name in ("clip", "t5")}


def velocity(path: Path) -> Tensor:
    """What the transformer in this file makes of fixed inputs, in float32."""
    transformer = load_transformer(path, torch.float32, CPU)
    random = torch.Generator().manual_seed(0)
    text = torch.randn(2, 5, SHAPE.t5_width, generator=random)
    pooled, x = torch.randn(2, SHAPE.clip_width, generator=random), torch.randn(2, 16, 6, 4, generator=random)
    with torch.no_grad():
        return predict_velocity(transformer, x, torch.tensor([0.2, 0.9]), text, pooled, torch.full((2,), 2.5))


def encoded(files: ModelFiles) -> list[Tensor]:
    return list(encode_text(files, CAPTIONS)[:2])


def decoded(path: Path) -> Tensor:
    return load_vae(path, CPU).decode(torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def reference() -> Tensor:
    return velocity(PICO_FILES.transformer)


def transformer_files(folder: Path) -> dict[str, Path]:
    """The same weights, bit for bit: float16 as pico's own file has them, or what holds all of their bits."""
    half = original(torch.float16)
    write_sharded(folder / "sharded", in_diffusers(torch.float16), "diffusion_pytorch_model")
    (folder / "one").mkdir()
    write(folder / "one" / "diffusion_pytorch_model.safetensors", in_diffusers(torch.float16))
    write(folder / "one" / "diffusion_pytorch_model.fp16.safetensors", in_diffusers(torch.float16))
    return {
        "original": write(folder / "original.safetensors", half),
        "float32": write(folder / "float32.safetensors", original(torch.float32)),
        "prefix": write(folder / "prefix.safetensors", prefixed("model.diffusion_model.", half)),
        "short prefix": write(folder / "short.safetensors", prefixed("diffusion_model.", half)),
        "checkpoint": write(folder / "checkpoint.safetensors", checkpoint(half)),
        "diffusers": write(folder / "diffusers.safetensors", in_diffusers(torch.float16)),
        "diffusers folder": folder / "one",
        "sharded folder": folder / "sharded",
        "gguf F16": write_gguf(folder / "f16.gguf", half, "F16"),
        "gguf of diffusers": write_gguf(folder / "diffusers.gguf", in_diffusers(torch.float16), "F16"),
    }


def test_the_same_weights_through_every_dialect_give_the_same_output_bit_for_bit(tmp_path, reference):
    for dialect, path in transformer_files(tmp_path).items():
        assert read_shape(path) == SHAPE, dialect
        assert torch.equal(velocity(path), reference), dialect


def fewer_bits() -> dict[str, dict[str, Tensor]]:
    fp8 = {name: tensor.to(FP8) for name, tensor in ORIGINAL.items()}
    since_2025 = scaled_fp8(ORIGINAL, ("weight_scale", "input_scale"), "")
    return {
        "bf16": original(torch.bfloat16),
        "fp8": fp8,
        "fp8 beside 16 bits": {name: fp8[name] if tensor.ndim == 2 else tensor for name, tensor in ORIGINAL.items()},
        "scaled fp8": scaled_fp8(ORIGINAL),
        "scaled fp8 of late 2025": since_2025 | {"img_in.comfy_quant": torch.zeros(8, dtype=torch.uint8)},
    }


@pytest.mark.parametrize("kind", fewer_bits())
def test_fewer_bits_are_read_as_what_they_stand_for(tmp_path, reference, kind):
    packed = fewer_bits()[kind]
    meant = velocity(write(tmp_path / "meant.safetensors", unpacked(packed)))
    assert torch.equal(velocity(write(tmp_path / "packed.safetensors", packed)), meant)
    in_checkpoint = write(tmp_path / "checkpoint.safetensors", checkpoint(packed))
    assert torch.equal(velocity(in_checkpoint), meant)
    error = (meant - reference).norm() / reference.norm()
    assert 0 < error < (0.02 if kind == "bf16" else 0.3)


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_gguf_is_read_as_what_it_stands_for(tmp_path, reference, kind):
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    path = write_gguf(tmp_path / "flux.gguf", ORIGINAL, kind)
    source, wanted = open_transformer(path), GGMLQuantizationType[kind]
    name = "double_blocks.0.img_attn.qkv.weight"
    meant = torch.from_numpy(dequantize(quantize(ORIGINAL[name].float().numpy(), wanted), wanted))
    assert source.entries[name].shape == ORIGINAL[name].shape and source.entries[name].dtype == kind
    assert torch.equal(source.read(name).float(), meant)
    assert torch.equal(source.read(name, (256, 512)).float(), meant[256:512])
    error = (velocity(path) - reference).norm() / reference.norm()
    assert 0 < error < {"BF16": 0.02, "Q8_0": 0.02}.get(kind, 0.4)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_gguf_s_k_quants_are_read_as_diffusers_reads_them(tmp_path, kind):
    """The package cannot write these, so the blocks are random bytes, below 0x3c so that every scale is a finite number."""
    import gguf
    from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

    wanted = gguf.GGMLQuantizationType[kind]
    num_bytes = 2 * gguf.GGML_QUANT_SIZES[wanted][1]  # of a row of two blocks
    blocks = np.random.default_rng(0).integers(0, 0x3C, (8, num_bytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "flux")
    writer.add_tensor("x.weight", blocks, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = open_tensors(tmp_path / "k.gguf")
    assert source.entries["x.weight"].shape == (8, 512)
    theirs = dequantize_gguf_tensor(GGUFParameter(torch.from_numpy(blocks), quant_type=wanted)).float()
    torch.testing.assert_close(source.read("x.weight"), theirs, rtol=1e-2, atol=1e-2 * theirs.abs().max().item())
    assert torch.equal(source.read("x.weight", (2, 5)), source.read("x.weight")[2:5])


# the whole model in one place


def base(flavour: str = "dev", **fields: object) -> BaseModelSpec:
    return BaseModelSpec(model_flavour=flavour, **fields)


def test_a_checkpoint_has_encoders_and_vae_inside(tmp_path):
    path = write(tmp_path / "all.safetensors", checkpoint(original(torch.float16)))
    files = resolve_files(base(pretrained_model_name_or_path=str(path), **TOKENIZERS))
    assert {files.transformer, files.vae, files.clip_l, files.t5} == {path}
    apart = replace(
        files,
        clip_l=write(tmp_path / "clip_l.safetensors", long_clip()),
        t5=write(tmp_path / "t5.safetensors", load_file(PICO_FILES.t5)),
    )
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(encoded(files), encoded(apart), strict=True))
    assert torch.equal(decoded(files.vae), decoded(PICO_FILES.vae))


def test_a_pipeline_folder_has_everything(tmp_path, reference):
    folder = write_pipeline(tmp_path / "FLUX.1-pico")
    files = resolve_files(base(pretrained_model_name_or_path=str(folder)))
    assert files.transformer == folder / "transformer" and files.t5_tokenizer == folder / "tokenizer_2"
    assert torch.equal(velocity(files.transformer), reference)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(encoded(files), encoded(PICO_FILES), strict=True))
    assert torch.equal(decoded(files.vae), decoded(PICO_FILES.vae))


def test_a_folder_may_be_named_for_each_part(tmp_path):
    folder = write_pipeline(tmp_path / "whole")
    parts = ("transformer", "vae", "clip_l", "t5", "clip_tokenizer", "t5_tokenizer")
    files = resolve_files(base(**{f"{part}_path": str(folder) for part in parts}))
    assert files == resolve_files(base(pretrained_model_name_or_path=str(folder)))


def test_a_transformer_only_fine_tune_lies_at_the_top_of_its_folder(tmp_path, reference):
    """What SimpleTuner calls the subfolder none; the rest comes from the base beside it."""
    write_sharded(tmp_path / "Dev2Pro", in_diffusers(torch.float16), "diffusion_pytorch_model")
    whole = write_pipeline(tmp_path / "base")
    spec = base(transformer_path=str(tmp_path / "Dev2Pro"), pretrained_model_name_or_path=str(whole))
    files = resolve_files(spec)
    assert files.transformer == tmp_path / "Dev2Pro" and files.vae == whole / "vae"
    assert torch.equal(velocity(files.transformer), reference)


def test_what_a_whole_model_lacks_is_named(tmp_path):
    path = write(tmp_path / "all.safetensors", checkpoint(original(torch.float16)))
    with pytest.raises(JobError, match=r"base\.clip_tokenizer_path: none is in .*all\.safetensors; name one"):
        resolve_files(base(pretrained_model_name_or_path=str(path)))
    with pytest.raises(JobError, match=r"base\.vae_path: none is in "):
        resolve_files(base(pretrained_model_name_or_path=str(PICO_FILES.transformer), **TOKENIZERS))


def test_the_fingerprint_of_a_folder_is_that_of_its_files(tmp_path):
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a").write_bytes(b"1")
    first = fingerprint(folder)
    assert fingerprint(folder) == first
    (folder / "inner" / "a").write_bytes(b"2")
    second = fingerprint(folder)
    (folder / "inner" / "a").rename(folder / "inner" / "b")
    assert len({first, second, fingerprint(folder)}) == 3


def test_a_lora_trains_on_one_checkpoint_as_on_its_parts(tmp_path, pictures, cache):
    path = write(tmp_path / "all.safetensors", checkpoint(original(torch.float16)))
    fields = {"model_flavour": "dev", "mixed_precision": "no", "pretrained_model_name_or_path": str(path), **TOKENIZERS}
    parts = ("transformer", "vae", "clip_l", "t5")
    apart = fields | {"pretrained_model_name_or_path": ""}
    apart |= {f"{part}_path": str(getattr(PICO_FILES, part)) for part in parts}
    apart["clip_l_path"] = str(write(tmp_path / "clip_l.safetensors", long_clip()))
    small = {"training": {"max_train_steps": 2}, "datasets": [{"instance_data_dir": str(pictures), "resolution": 64}]}
    results = []
    for number, fields_of_run in enumerate((fields, apart)):
        job = parse_job(job_data(pictures, base=fields_of_run, **small))
        results.append(run_in_process(job, tmp_path / str(number), cache))
    first, second = (load_file(result["lora"]) for result in results)
    assert all(torch.equal(first[name], second[name]) for name in first)
    manifest = json.loads((Path(results[0]["run_dir"]) / "manifest.json").read_text())
    assert manifest["files"]["t5"] == {"path": str(path), "fingerprint": fingerprint(path)}


# the hub


def cached_on_the_hub(home: Path, repo: str) -> Path:
    """A repository in the hub's own cache, as a download leaves it."""
    folder = home / "hub" / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    return write_pipeline(folder / "snapshots" / ("0" * 40))


def test_a_hub_id_is_not_downloaded_unless_that_is_allowed():
    with pytest.raises(JobError, match="nor is it in the hub's cache; correct it, or set allow_download if it is a hub id"):
        resolve_files(base(pretrained_model_name_or_path="nobody/no-such-flux", allow_download=False))


def test_a_hub_id_that_is_allowed_needs_the_hub():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(JobError, match=r"nobody/no-such-flux (is not in the hub's cache|cannot be fetched)"):
        resolve_files(base(pretrained_model_name_or_path="nobody/no-such-flux", allow_download=True))


def test_what_is_in_the_hub_s_cache_is_used_without_a_download(tmp_path, monkeypatch):
    snapshot = cached_on_the_hub(tmp_path, "someone/FLUX.1-pico")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    files = resolve_files(base(pretrained_model_name_or_path="someone/FLUX.1-pico"))
    assert files.transformer == snapshot / "transformer" and files.clip_tokenizer == snapshot / "tokenizer"


# encoders and VAE


def bare_clip() -> dict[str, Tensor]:
    return {name.removeprefix("text_model."): tensor for name, tensor in load_file(PICO_FILES.clip_l).items()}


@pytest.mark.parametrize("dialect", ["transformers", "without text_model", "ComfyUI's CLIPSave", "checkpoint"])
def test_clip_in_every_dialect(tmp_path, dialect):
    named = prefixed("text_model.", bare_clip())
    junk = {"text_projection.weight": torch.zeros(2, 2), "logit_scale": torch.zeros(())}
    tensors = {
        "transformers": named | {"text_model.embeddings.position_ids": torch.arange(32)} | junk,
        "without text_model": bare_clip(),
        "ComfyUI's CLIPSave": prefixed("clip_l.transformer.", named),
        "checkpoint": prefixed("text_encoders.clip_l.transformer.", named | junk),
    }[dialect]
    path = write(tmp_path / "clip.safetensors", tensors)
    names = set(bare_clip())
    assert open_clip(path).entries.keys() == names
    theirs = load_clip(PICO_FILES.clip_l, torch.float32, CPU).state_dict()
    ours = load_clip(path, torch.float32, CPU).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


LLAMA_CPP = {
    "shared": "token_embd",
    "encoder.final_layer_norm": "enc.output_norm",
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.0.SelfAttention.q": "attn_q",
    "layer.0.SelfAttention.k": "attn_k",
    "layer.0.SelfAttention.v": "attn_v",
    "layer.0.SelfAttention.o": "attn_o",
    "layer.0.layer_norm": "attn_norm",
    "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up",
    "layer.1.DenseReluDense.wo": "ffn_down",
    "layer.1.layer_norm": "ffn_norm",
}


def by_llama_cpp(name: str) -> str:
    name = name.replace("encoder.block.", "enc.blk.")
    for theirs, ours in LLAMA_CPP.items():
        name = name.replace(theirs, ours)
    return name


def t5_files(folder: Path) -> dict[str, Path]:
    tensors = load_file(PICO_FILES.t5)
    write_sharded(folder / "sharded", tensors, "model", 2)
    embedding = {"encoder.embed_tokens.weight": tensors["shared.weight"]}
    only_embedding = {name: tensor for name, tensor in tensors.items() if name != "shared.weight"} | embedding
    return {
        "bare": write(folder / "bare.safetensors", tensors),
        "embedding twice": write(folder / "twice.safetensors", tensors | embedding),
        "embedding by its other name": write(folder / "other.safetensors", only_embedding),
        "with a decoder": write(folder / "whole.safetensors", tensors | {"decoder.block.0.x": torch.zeros(1)}),
        "checkpoint": write(folder / "prefixed.safetensors", prefixed("text_encoders.t5xxl.transformer.", tensors)),
        "sharded folder": folder / "sharded",
        "gguf": write_gguf(
            folder / "t5.gguf", {by_llama_cpp(name): tensor for name, tensor in tensors.items()}, "F16", "t5encoder"
        ),
    }


def test_t5_in_every_dialect(tmp_path):
    theirs = load_t5(PICO_FILES.t5, torch.float32, CPU).state_dict()
    for dialect, path in t5_files(tmp_path).items():
        ours = load_t5(path, torch.float32, CPU)
        assert ours.encoder.embed_tokens.weight is ours.shared.weight
        assert all(torch.equal(ours.state_dict()[name], theirs[name]) for name in theirs), dialect


@pytest.mark.parametrize("kind", ["fp8", "scaled fp8"])
def test_t5_in_eight_bits_is_read_as_what_it_stands_for(tmp_path, kind):
    tensors = load_file(PICO_FILES.t5)
    packed = scaled_fp8(tensors) if kind == "scaled fp8" else {name: tensor.to(FP8) for name, tensor in tensors.items()}
    meant = load_t5(write(tmp_path / "meant.safetensors", unpacked(packed)), torch.float32, CPU).state_dict()
    for path in (
        write(tmp_path / "t5.safetensors", packed),
        write(tmp_path / "all.safetensors", checkpoint(original(torch.float16), packed)),
    ):
        ours = load_t5(path, torch.float32, CPU).state_dict()
        assert all(torch.equal(ours[name], meant[name]) for name in meant)


def test_the_sizes_of_the_real_encoders_are_read_off_their_tensors(tmp_path):
    from trainer_core.flux.text import CLIP_L, T5_V1_1_XXL, clip_config, t5_config

    clip = {
        "embeddings.token_embedding.weight": torch.zeros(49408, 768, dtype=FP8),
        "embeddings.position_embedding.weight": torch.zeros(77, 768, dtype=FP8),
        **{f"encoder.layers.{n}.mlp.fc1.weight": torch.zeros(3072, 768, dtype=FP8) for n in range(12)},
    }
    config = clip_config(open_clip(write(tmp_path / "clip.safetensors", prefixed("text_model.", clip))))
    assert {name: getattr(config, name) for name in CLIP_L} == CLIP_L
    attention = "encoder.block.0.layer.0.SelfAttention"
    t5 = {
        "shared.weight": torch.zeros(32128, 4096, dtype=FP8),
        f"{attention}.relative_attention_bias.weight": torch.zeros(32, 64),
        f"{attention}.q.weight": torch.zeros(4096, 4096, dtype=FP8),
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": torch.zeros(10240, 4096, dtype=FP8),
        **{f"encoder.block.{n}.layer.1.layer_norm.weight": torch.zeros(4096) for n in range(24)},
    }
    config = t5_config(open_t5(write(tmp_path / "t5.safetensors", t5)))
    assert {name: getattr(config, name) for name in T5_V1_1_XXL} == T5_V1_1_XXL


def test_the_small_vae_in_diffusers_naming_and_in_a_checkpoint(tmp_path):
    tensors = load_file(PICO_FILES.vae)
    (tmp_path / "vae").mkdir()
    write(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", tiny_to_diffusers(tensors))
    for path in (tmp_path / "vae", write(tmp_path / "all.safetensors", prefixed("vae.", tensors))):
        assert torch.equal(decoded(path), decoded(PICO_FILES.vae))


@pytest.mark.slow
def test_flux_s_vae_in_both_namings(tmp_path):
    from diffusers import AutoencoderKL

    tensors = AutoencoderKL(**FLUX_VAE).state_dict()
    (tmp_path / "vae").mkdir()
    write(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", tensors)
    ours = load_vae(tmp_path / "vae", CPU).model.state_dict()
    assert all(torch.equal(ours[name], tensors[name]) for name in tensors)


def test_a_smaller_relative_of_flux_s_vae_has_the_widths_of_its_tensors(tmp_path):
    from diffusers import AutoencoderKL

    small = AutoencoderKL(**FLUX_VAE | {"block_out_channels": (32, 64, 64, 64)})
    small.save_pretrained(tmp_path / "vae")
    pixels_BCHW = torch.rand(1, 3, 32, 32)
    mean = small.eval().encode(pixels_BCHW).latent_dist.mode()
    assert torch.allclose(load_vae(tmp_path / "vae", CPU).encode(pixels_BCHW), (mean - FLUX_SHIFT) * FLUX_SCALE, atol=1e-5)


def test_a_tokenizer_comes_from_a_file_or_a_folder_and_nowhere_else(tmp_path):
    folder = write_pipeline(tmp_path / "whole") / "tokenizer_2"
    texts = [load_tokenizer(path)(CAPTIONS)["input_ids"] for path in (folder, PICO_FILES.t5_tokenizer)]
    assert texts[0] == texts[1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobError, match=r"holds no tokenizer .*give the folder with its tokenizer\.json"):
        load_tokenizer(tmp_path / "empty")
