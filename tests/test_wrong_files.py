"""Of a file that is not what it is given as, one sentence says what it is instead."""

import re
import struct
from pathlib import Path

import pytest
import torch
from model_files import FP8, ORIGINAL, in_diffusers, original, scaled_fp8, write, write_gguf, write_sharded
from safetensors.torch import load_file

from support import job_data
from trainer_core.errors import JobError
from trainer_core.flavour_check import check_flavour
from trainer_core.flux.dialects import open_clip, open_t5, open_transformer, open_vae
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import open_weights, read_shape
from trainer_core.flux.tensors import open_tensors
from trainer_core.job_file import parse_job
from trainer_core.setup import prepare

SHAPE = read_shape(PICO_FILES.transformer)
ONE = torch.zeros(1, 1)


def sentence(opener, path: Path) -> str:
    """What is said of it: one line, without shapes or a traceback."""
    with pytest.raises(JobError) as caught:
        opener(path)
    text = str(caught.value)
    assert "\n" not in text and "torch.Size" not in text and len(text) < len(str(path)) + 260
    return text.replace(str(path), "FILE")


OTHER_MODELS = {
    "transformer.x.lora_A.weight": "a LoRA",
    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": "a LoRA",
    "transformer.x.lokr_w1": "a LoRA (LoKr)",
    "lycoris_x.hada_w1_a": "a LoRA (LoHa)",
    "controlnet_blocks.0.weight": "a ControlNet",
    "redux_up.weight": "FLUX.1 Redux, which only encodes reference pictures",
    "distilled_guidance_layer.in_proj.weight": "a Chroma model, which came out of FLUX.1 but has another architecture",
    "double_stream_modulation_img.lin.weight": "a FLUX.2 model",
    "txt_in.individual_token_refiner.blocks.0.x": "a HunyuanVideo model",
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": "a Stable Diffusion 3 model",
    "cap_embedder.0.weight": "a Lumina or Z-Image model",
    "txt_norm.weight": "a Qwen-Image model",
    "caption_projection.linear_1.weight": "a PixArt or Sana model",
    "patch_embedding.weight": "a Wan model",
    "conditioner.embedders.1.model.ln_final.weight": "an SDXL checkpoint",
    "model.diffusion_model.label_emb.0.0.weight": "an SDXL model",
    "add_embedding.linear_1.weight": "an SDXL model",
    "cond_stage_model.model.ln_final.weight": "a Stable Diffusion 2 checkpoint",
    "cond_stage_model.transformer.text_model.x": "a Stable Diffusion 1.5 checkpoint",
    "model.diffusion_model.input_blocks.0.0.weight": "a Stable Diffusion 1.5 or 2 model",
    "down_blocks.0.attentions.0.transformer_blocks.0.x": "a Stable Diffusion 1.5 or 2 model",
    "context_embedder.weight": "a Stable Diffusion 3 model or the like",
    "vision_model.x": "a CLIP model with its picture encoder",
    "transformer.resblocks.0.x": "a CLIP in the OpenCLIP naming",
    "model.layers.0.x": "a language model",
    "double_blocks.0.img_attn.qkv.weight": "a part of a FLUX, or a relative of it, with pieces missing",
    "transformer_blocks.0.x": "a transformer of another family",
    "decoder.conv_in.weight": "a VAE, or a half of one",
    "something.else": "a model that is not known here",
}


@pytest.mark.parametrize(("name", "meaning"), OTHER_MODELS.items(), ids=list(OTHER_MODELS.values()))
def test_another_model_is_told_from_its_keys(tmp_path, name, meaning):
    path = write(tmp_path / "model.safetensors", {name: ONE})
    expected = f"FILE is {meaning}, not a FLUX.1 transformer; choose another transformer_path"
    assert sentence(read_shape, path) == expected


def test_a_chroma_is_told_although_most_of_its_keys_are_flux_s(tmp_path):
    tensors = {name: tensor for name, tensor in ORIGINAL.items() if "_mod." not in name and "vector_in" not in name}
    path = write(tmp_path / "chroma.safetensors", tensors | {"distilled_guidance_layer.norms.0.scale": ONE})
    assert "is a Chroma model" in sentence(read_shape, path)


@pytest.mark.parametrize("place", ["transformer", "vae", "clip_l", "t5"])
def test_the_parts_of_a_flux_in_each_other_s_place(place):
    openers = {"transformer": read_shape, "vae": open_vae, "clip_l": open_clip, "t5": open_t5}
    meanings = {
        "transformer": "a FLUX.1 transformer",
        "vae": "a VAE",
        "clip_l": "a CLIP text encoder",
        "t5": "a T5 text encoder",
    }
    for other in openers.keys() - {place}:
        text = sentence(openers[place], getattr(PICO_FILES, other))
        assert text.startswith(f"FILE is {meanings[other]}, not a ") and f"choose another {place}_path" in text


@pytest.mark.parametrize("name", ["img_in.weight.absmax", "img_in.weight.quant_state.bitsandbytes__nf4"])
def test_a_flux_that_bitsandbytes_quantised(tmp_path, name):
    text = sentence(read_shape, write(tmp_path / "nf4.safetensors", ORIGINAL | {name: ONE}))
    assert "weights that bitsandbytes quantised to 4 bits (nf4 or fp4), which cannot be trained on" in text
    assert "take the bf16 or fp8 file, and choose base_model_precision" in text


def test_other_quantised_files(tmp_path):
    nunchaku = write(tmp_path / "nunchaku.safetensors", ORIGINAL | {"x.wscales": ONE})
    assert "a model in Nunchaku's own 4-bit format" in sentence(read_shape, nunchaku)
    quanto = write(tmp_path / "quanto.safetensors", ORIGINAL | {"x.weight._data": ONE})
    assert "weights that quanto quantised" in sentence(read_shape, quanto)
    packed = scaled_fp8(ORIGINAL, ("weight_scale", "input_scale"), "")
    blockwise = packed | {"img_in.weight_scale": torch.ones(256, 4)}
    assert "of such files only scaled fp8 is" in sentence(read_shape, write(tmp_path / "mx.safetensors", blockwise))
    fp4 = packed | {"img_in.weight": torch.zeros(256, 32, dtype=torch.uint8)}
    assert "of such files only scaled fp8 is" in sentence(read_shape, write(tmp_path / "fp4.safetensors", fp4))


@pytest.mark.parametrize(
    ("channels", "name"), [(384, "FLUX.1 Fill"), (128, "FLUX.1 Canny or Depth"), (96, "a relative of FLUX.1")]
)
def test_a_flux_that_takes_more_than_text(tmp_path, channels, name):
    path = write(tmp_path / "fill.safetensors", ORIGINAL | {"img_in.weight": torch.zeros(256, channels)})
    assert f"FILE is {name}: it takes {channels} input channels, and the text-to-image models take 64" in sentence(
        read_shape, path
    )


# files that are no model at all


@pytest.mark.parametrize("ending", [".pt", ".pth", ".ckpt", ".bin", ".pkl"])
def test_a_pickle_is_refused_by_its_name(tmp_path, ending):
    path = tmp_path / f"flux{ending}"
    path.write_bytes(b"anything")
    text = "FILE is a pickle, which can run code when it is opened; get the model as .safetensors"
    assert sentence(open_tensors, path) == text


@pytest.mark.parametrize(
    ("content", "meaning"),
    [
        (b"", "is empty; download or copy it again"),
        (b"<!DOCTYPE html><html>Access to model is restricted</html>", "is a web page, so the download was not the model"),
        (b"\n<html>", "is a web page, so the download was not the model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a git-lfs pointer, not the model itself"),
        (b"PK\x03\x04" + bytes(100), "is a pickle under another name, and opening one can run code"),
        (b"\x80\x02}q\x00" + bytes(100), "is a pickle under another name, and opening one can run code"),
        (b'{"error": "Invalid username or password."}', "is JSON text, not a model"),
        (b"GGUF" + bytes(100), "is a GGUF file under another name; rename it to .gguf"),
        (b"\xff" * 100, "is not a whole safetensors file (100 bytes); download or copy it again"),
        (b"nothing", "is not a whole safetensors file (7 bytes); download or copy it again"),
        (b"\x08" + bytes(7) + b"nonsense", "is not a safetensors file: its header is not JSON; download it again"),
    ],
)
def test_what_a_download_may_leave_instead_of_a_model(tmp_path, content, meaning):
    path = tmp_path / "flux.safetensors"
    path.write_bytes(content)
    assert sentence(open_tensors, path).startswith(f"FILE {meaning}")


@pytest.mark.parametrize("part", [0.001, 0.5, 0.999])
def test_a_truncated_download(tmp_path, part):
    whole = PICO_FILES.transformer.read_bytes()
    path = tmp_path / "flux.safetensors"
    path.write_bytes(whole[: int(part * len(whole))])
    assert re.search(
        "FILE is (cut off: |not a whole safetensors file).*; download or copy it again", sentence(read_shape, path)
    )


@pytest.mark.parametrize("part", [0.001, 0.5, 0.99])
def test_a_truncated_gguf(tmp_path, part):
    whole = write_gguf(tmp_path / "whole.gguf", ORIGINAL, "Q8_0").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(part * len(whole))])
    assert re.search(r"FILE is not a whole GGUF file \(.*\); download or copy it again", sentence(read_shape, path))


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_a_gguf_with_an_empty_tensor(tmp_path, kind):
    """Fuzzing found it: the package reads such a file, and falls over the tensor."""
    path = write_gguf(tmp_path / "empty.gguf", {"none": torch.zeros(0, 32)}, kind)
    assert "FILE is not a whole GGUF file (the tensor 'none' holds nothing)" in sentence(read_shape, path)


NUMBERS, STRINGS, ARRAYS = 5, 8, 9  # types of an array's elements


@pytest.mark.parametrize(
    ("kind", "count", "said"),
    [
        (NUMBERS, 1 << 53, "arrays of more than"),
        (NUMBERS, 1 << 20, "reaches behind its end"),
        (STRINGS, 1 << 20, "ends within its head"),
        (ARRAYS, 1, "ends within its head"),
        (99, 1, "unknown type 99"),
    ],
)
def test_a_gguf_that_claims_an_array_that_it_has_not_takes_no_memory(tmp_path, kind, count, said):
    path = tmp_path / "small.gguf"
    key = struct.pack("<Q1s", 1, b"a")
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IIQ", ARRAYS, kind, count))
    assert said in sentence(open_tensors, path)


def test_a_gguf_s_single_number_has_no_rows(tmp_path):
    path = tmp_path / "small.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q1sIIQ", 1, b"a", 0, 1, 0)
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(2))
    assert open_tensors(path).read("a").numel() == 1
    assert "'a' is a single number and has no rows" in sentence(lambda path: open_tensors(path).read("a", (0, 1)), path)


def test_a_web_page_under_the_name_of_a_gguf(tmp_path):
    path = tmp_path / "flux.gguf"
    path.write_bytes(b"<!DOCTYPE html>")
    assert "is a web page" in sentence(open_tensors, path)


def test_other_endings_are_not_read(tmp_path):
    path = tmp_path / "flux.onnx"
    path.write_bytes(b"x")
    assert "is neither .safetensors nor .gguf; only these are read" in sentence(open_tensors, path)


def test_a_file_without_tensors(tmp_path):
    assert "is a file without any tensor, not a" in sentence(read_shape, write(tmp_path / "empty.safetensors", {}))


def test_folders_that_are_not_whole(tmp_path):
    (tmp_path / "empty").mkdir()
    assert sentence(open_tensors, tmp_path / "empty") == "FILE lacks a .safetensors file; download or copy it again"
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"x")
    assert "it has pytorch_model.bin, a pickle, which is not opened" in sentence(open_tensors, tmp_path / "pickle")
    write_sharded(tmp_path / "sharded", in_diffusers(torch.float16), "diffusion_pytorch_model")
    (tmp_path / "sharded" / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    text = sentence(open_tensors, tmp_path / "sharded")
    assert "FILE lacks diffusion_pytorch_model-00002-of-00003.safetensors" in text
    (tmp_path / "many").mkdir()
    for name in ("a", "b"):
        write(tmp_path / "many" / f"{name}.safetensors", {"x": ONE})
    assert "FILE holds 2 models (a.safetensors, b.safetensors); name one" in sentence(open_tensors, tmp_path / "many")


@pytest.mark.parametrize("dialect", ["original", "diffusers"])
def test_a_tensor_that_is_not_there_is_named(tmp_path, dialect):
    tensors = original(torch.float16) if dialect == "original" else in_diffusers(torch.float16)
    name = "double_blocks.0.img_mlp.2.bias" if dialect == "original" else "transformer_blocks.0.ff.net.2.bias"
    path = write(tmp_path / "flux.safetensors", {key: tensor for key, tensor in tensors.items() if key != name})
    with pytest.raises(JobError, match=f"lacks {re.escape(name)}"):
        open_weights(path)


# encoders and VAE


@pytest.mark.parametrize(("channels", "whose"), [(4, " (of Stable Diffusion 1.5 or SDXL)"), (32, " (of FLUX.2)"), (8, "")])
def test_a_vae_of_another_model(tmp_path, channels, whose):
    tensors = {"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3), "decoder.conv_in.weight": torch.zeros(8, channels, 3, 3)}
    text = sentence(open_vae, write(tmp_path / "vae.safetensors", tensors))
    assert f"FILE is a VAE of another model{whose}: its latents have {channels} channels, those of FLUX.1 have 16" in text


def test_half_a_taef1(tmp_path):
    path = write(tmp_path / "taef1_decoder.safetensors", {"taesd_decoder.1.weight": ONE})
    assert "FILE is a VAE, or a half of one, not a FLUX VAE (ae.safetensors) or TAEF1" in sentence(open_vae, path)


def test_a_umt5(tmp_path):
    name = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    text = sentence(open_t5, write(tmp_path / "umt5.safetensors", load_file(PICO_FILES.t5) | {name: ONE}))
    assert "FILE is a UMT5 encoder (of Wan), not a T5 v1.1 XXL encoder" in text


def test_an_encoder_that_lacks_a_tensor(tmp_path):
    from trainer_core.flux.text import load_clip, load_t5

    t5 = load_file(PICO_FILES.t5)
    del t5["encoder.block.1.layer.1.DenseReluDense.wo.weight"]
    path = write(tmp_path / "t5.safetensors", t5)
    with pytest.raises(JobError, match=r"t5\.safetensors lacks the tensor 'encoder\.block\.1\.layer\.1\.DenseReluDense\.wo"):
        load_t5(path, torch.float32, torch.device("cpu"))
    clip = load_file(PICO_FILES.clip_l)
    del clip["text_model.embeddings.position_embedding.weight"]
    path = write(tmp_path / "clip.safetensors", clip)
    with pytest.raises(JobError, match=r"clip\.safetensors lacks the tensor 'embeddings\.position_embedding"):
        load_clip(path, torch.float32, torch.device("cpu"))


# the flavour against the files


def checked(tmp_path: Path, flavour: str, guidance: bool = True, **parts: dict) -> None:
    """`check_flavour` of a job with pico's own encoders and a transformer with or without the guidance embedder."""
    from dataclasses import replace

    tensors = {name: tensor for name, tensor in ORIGINAL.items() if guidance or not name.startswith("guidance_in.")}
    files = replace(PICO_FILES, transformer=write(tmp_path / "flux.safetensors", tensors))
    paths = ("transformer", "vae", "clip_l", "t5", "clip_tokenizer", "t5_tokenizer")
    base = {"model_flavour": flavour} | {f"{name}_path": str(getattr(files, name)) for name in paths}
    job = parse_job(job_data(tmp_path, base=base | parts.pop("base", {}), **parts))
    check_flavour(job, files, read_shape(files.transformer))


@pytest.mark.parametrize("flavour", ["dev", "krea", "kontext", "fluxbooru"])
def test_a_file_without_the_guidance_embedder_looks_like_schnell(tmp_path, flavour):
    with pytest.raises(JobError, match=r"has no guidance embedder and so looks like schnell or libreflux; choose the flavour"):
        checked(tmp_path, flavour, guidance=False)


def test_a_file_with_the_guidance_embedder_is_no_schnell(tmp_path):
    with pytest.raises(JobError, match="has the guidance embedder and so looks like dev or krea or kontext or fluxbooru"):
        checked(tmp_path, "schnell")


@pytest.mark.parametrize("flavour", ["dev", "krea"])
def test_of_flavours_that_no_file_can_tell_apart_nothing_is_said(tmp_path, caplog, flavour):
    checked(tmp_path, flavour)
    assert not caplog.records


@pytest.mark.parametrize("guidance", [True, False])
def test_libreflux_takes_either_file_and_has_the_padding_hidden_by_itself(tmp_path, caplog, guidance):
    checked(tmp_path, "libreflux", guidance, flow={"flux_attention_masked_training": True})
    assert not caplog.records
    checked(tmp_path, "libreflux", guidance)
    assert "flow.flux_attention_masked_training is True here, which libreflux needs" in caplog.text


def test_fluxbooru_wants_the_padding_in_sight(tmp_path, caplog):
    checked(tmp_path, "fluxbooru", flow={"flux_guidance_value": 3.5})
    assert not caplog.records
    with pytest.raises(JobError, match=r"padding of the prompt in sight; set flow\.flux_attention_masked_training to false"):
        checked(tmp_path, "fluxbooru", flow={"flux_attention_masked_training": True})


@pytest.mark.parametrize(
    ("flavour", "parts", "warning"),
    [
        ("kontext", {}, "kontext is trained here without reference pictures, as a text-to-image model"),
        ("schnell", {}, "flow.flux_fast_schedule is True here, which schnell needs, since the job leaves it to the base"),
        ("schnell", {"flow": {"flow_schedule_shift": 3.0}}, "or give its training adapter as assistant_lora_path"),
        ("fluxbooru", {}, "flow.flux_guidance_value is 3.5 here, which fluxbooru needs"),
        (
            "fluxbooru",
            {"flow": {"flux_guidance_value": 2}},
            "was trained with flux_guidance_value 3.5; 2 teaches it a little of",
        ),
        (
            "dev",
            {"validation": {"validation_num_inference_steps": 8}},
            "dev makes its pictures in 15 to 28 steps; this job has 8",
        ),
        ("fluxbooru", {"validation": {"validation_num_inference_steps": 20}}, "in at least 28 steps; this job has 20"),
        ("fluxbooru", {"validation": {"validation_guidance_real": 1}}, "needs real CFG (6) for its pictures"),
    ],
)
def test_what_is_unusual_is_said_and_done(tmp_path, caplog, flavour, parts, warning):
    checked(tmp_path, flavour, guidance=flavour != "schnell", **parts)
    assert warning in caplog.text


def test_schnell_on_its_own_noise_levels_needs_no_warning(tmp_path, caplog):
    checked(tmp_path, "schnell", guidance=False, flow={"flux_fast_schedule": True})
    assert not caplog.records


def test_encoders_of_another_width_are_refused_before_anything_is_loaded(tmp_path):
    wide = load_file(PICO_FILES.clip_l)
    name = "text_model.embeddings.token_embedding.weight"
    clip = write(tmp_path / "clip_g.safetensors", wide | {name: torch.zeros(2200, 1280)})
    with pytest.raises(JobError, match=r"gives vectors of 1280 numbers \(CLIP-G, of SDXL\), and the transformer takes 64"):
        prepare_with(tmp_path, clip_l_path=str(clip))
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    t5 = write(tmp_path / "t5_base.safetensors", load_file(PICO_FILES.t5) | {name: torch.zeros(768, 768, dtype=FP8)})
    with pytest.raises(JobError, match=r"gives vectors of 768 numbers, and the transformer takes 128; choose T5 v1\.1 XXL"):
        prepare_with(tmp_path, t5_path=str(t5))


def prepare_with(tmp_path: Path, **paths: str) -> None:
    names = ("transformer", "vae", "clip_l", "t5", "clip_tokenizer", "t5_tokenizer")
    base = {f"{name}_path": str(getattr(PICO_FILES, name)) for name in names} | paths
    prepare(parse_job(job_data(tmp_path, base=base | {"model_flavour": "dev"})))


def test_the_transformer_of_a_checkpoint_is_found_behind_its_prefix(tmp_path):
    path = write(tmp_path / "a.safetensors", {f"model.diffusion_model.{name}": tensor for name, tensor in ORIGINAL.items()})
    assert open_transformer(path).entries.keys() == ORIGINAL.keys()
    assert read_shape(path) == SHAPE
