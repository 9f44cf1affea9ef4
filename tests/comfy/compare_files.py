"""Reads the same files with ComfyUI's classes and with the core, and prints the largest differences as one JSON object.

Run by test_files.py in ComfyUI's interpreter, with the pack's root and ComfyUI's on the path: compare_files.py FOLDER.
Weights are random; VAE and CLIP-L have FLUX.1's sizes, T5 its layout in two narrow layers (its real size needs 9 GB).
"""

import json
import sys
from pathlib import Path

import torch

FOLDER = Path(sys.argv[1])
sys.argv = [sys.argv[0], "--cpu"]  # ComfyUI reads the command line when it is imported

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.utils  # noqa: E402
from comfy.latent_formats import Flux  # noqa: E402
from comfy.ldm.models.autoencoder import AutoencodingEngine  # noqa: E402
from comfy.text_encoders.flux import T5XXLTokenizer  # noqa: E402
from comfy.text_encoders.sd3_clip import T5XXLModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel  # noqa: E402

from trainer_core.flux.text import CLIP_L, CLIP_PREFIX, load_clip, load_t5, load_tokenizer, token_ids  # noqa: E402
from trainer_core.flux.vae import load_vae  # noqa: E402

CPU = torch.device("cpu")
COMFY = Path(comfy.sd1_clip.__file__).parent
CAPTION = "a red cat sitting on a blue chair"
SMALL_T5 = {"vocab_size": 32128, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
FLUX_VAE = {"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
FLUX_VAE |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}


def fill(module: torch.nn.Module, spread: float, centre: float) -> None:
    """Random weights that keep a signal alive: matrices around 0, vectors around `centre`."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, mean=0.0 if parameter.ndim > 1 else centre, std=spread)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, relative to the size of the values."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.no_grad()
def compare_vae() -> dict[str, float]:
    path, model = FOLDER / "ae.safetensors", "comfy.ldm.modules.diffusionmodules.model"
    regularizer = "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"
    engine = AutoencodingEngine(
        regularizer_config={"target": regularizer, "params": {"sample": False}},
        encoder_config={"target": f"{model}.Encoder", "params": FLUX_VAE},
        decoder_config={"target": f"{model}.Decoder", "params": FLUX_VAE},
    )
    fill(engine, 0.03, 0.5)
    save_file(engine.state_dict(), path)
    ours, theirs = load_vae(path, CPU), comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path), safe_load=True))
    theirs.vae_dtype = torch.float32
    theirs.first_stage_model.float()
    pixels_BHWC, latent = torch.rand(1, 64, 96, 3), torch.randn(1, 16, 8, 12)
    encoded = Flux().process_in(theirs.encode(pixels_BHWC))
    decoded = theirs.decode(Flux().process_out(latent)).permute(0, 3, 1, 2)
    return {
        "vae encode": difference(ours.encode(pixels_BHWC.permute(0, 3, 1, 2) * 2 - 1), encoded),
        "vae decode": difference((ours.decode(latent) / 2 + 0.5).clamp(0, 1), decoded),
    }


@torch.no_grad()
def compare_clip() -> dict[str, float]:
    path = FOLDER / "clip_l.safetensors"
    tensors = CLIPTextModel(CLIPTextConfig(**CLIP_L)).state_dict()
    names = {name: CLIP_PREFIX + name.removeprefix(CLIP_PREFIX) for name in tensors if "position_ids" not in name}
    save_file({name: tensors[key].contiguous() for key, name in names.items()}, path)
    theirs = comfy.sd1_clip.SDClipModel(device="cpu", dtype=torch.float32, return_projected_pooled=False, layer="last")
    theirs.load_sd(comfy.utils.load_torch_file(str(path), safe_load=True))
    ids = token_ids(load_tokenizer(COMFY / "sd1_tokenizer"), [CAPTION], 77)
    tokens = comfy.sd1_clip.SDTokenizer().tokenize_with_weights(CAPTION)
    pooled = load_clip(path, torch.float32, CPU)(input_ids=ids).pooler_output
    same_tokens = ids[0].tolist() == [number for number, _ in tokens[0]]
    return {
        "clip tokens": 0.0 if same_tokens else 1.0,
        "clip pooled": difference(pooled, theirs.encode_token_weights(tokens)[1]),
    }


@torch.no_grad()
def compare_t5() -> dict[str, float]:
    path = FOLDER / "t5xxl.safetensors"
    config = SMALL_T5 | {"feed_forward_proj": "gated-gelu", "is_encoder_decoder": False}
    model = T5EncoderModel(T5Config(**config))
    fill(model, 0.2, 1.0)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items() if "embed_tokens" not in name}
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    sizes = {name: SMALL_T5[name] for name in ("num_layers", "d_model", "num_heads", "d_kv", "d_ff")}
    theirs = T5XXLModel(device="cpu", dtype=torch.float32, model_options={"t5xxl_model_config": sizes})
    theirs.load_sd(comfy.utils.load_torch_file(str(path), safe_load=True))
    ids = token_ids(load_tokenizer(COMFY / "text_encoders" / "t5_tokenizer"), [CAPTION], 256)
    tokens = T5XXLTokenizer().tokenize_with_weights(CAPTION)
    text = load_t5(path, torch.float32, CPU)(input_ids=ids).last_hidden_state
    same_tokens = ids[0].tolist() == [number for number, _ in tokens[0]]
    differences = {"t5 tokens": 0.0 if same_tokens else 1.0}
    return differences | {
        "t5 sequence": difference(text, theirs.encode_token_weights(tokens)[0]),
        "t5 in scaled fp8": compare_scaled_t5(tensors, sizes, ids, tokens),
    }


@torch.no_grad()
def compare_scaled_t5(tensors: dict[str, torch.Tensor], sizes: dict[str, int], ids: torch.Tensor, tokens: list) -> float:
    """The same encoder as ComfyUI's t5xxl_fp8_e4m3fn_scaled.safetensors has it."""
    path = FOLDER / "t5xxl_scaled.safetensors"
    linear = (".q.weight", ".k.weight", ".v.weight", ".o.weight", ".wi_0.weight", ".wi_1.weight", ".wo.weight")
    packed = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for name, tensor in tensors.items():
        if name.endswith(linear):
            scale = tensor.abs().max() / 448
            packed[name.removesuffix("weight") + "scale_weight"] = scale
            tensor = (tensor / scale).to(torch.float8_e4m3fn)
        packed[name] = tensor
    save_file(packed, path)
    options = {"t5xxl_model_config": sizes, "t5xxl_scaled_fp8": torch.float8_e4m3fn}
    theirs = T5XXLModel(device="cpu", dtype=torch.float32, model_options=options)
    theirs.load_sd(comfy.utils.load_torch_file(str(path), safe_load=True))
    text = load_t5(path, torch.float32, CPU)(input_ids=ids).last_hidden_state
    return difference(text, theirs.encode_token_weights(tokens)[0])


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps(compare_vae() | compare_clip() | compare_t5()))
