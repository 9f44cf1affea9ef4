"""Transformer files in a real ComfyUI: its own forward and the core's agree on each dialect that both can read."""

import pytest
import torch
from comfy_server import PACK_ROOT
from model_files import (
    CPU,
    FP8,
    ORIGINAL,
    SHAPE,
    WITHOUT_GUIDANCE,
    checkpoint,
    in_diffusers,
    original,
    prefixed,
    scaled_fp8,
    write,
    write_gguf,
    write_pipeline,
)
from safetensors.torch import load_file
from test_files import run_in_comfyui
from torch import Tensor

from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import load_transformer
from trainer_core.flux.predict import predict_velocity

MOST_RELATIVE_DIFFERENCE = 1e-4


def as_comfyui_scales(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scaled fp8 with the biases in fp8 too: ComfyUI 0.3.64 rounds them so when it loads such a file, later ones do not."""
    return scaled_fp8({name: tensor.to(FP8) if name.endswith(".bias") else tensor for name, tensor in tensors.items()})


PLAIN_FP8 = {name: tensor.to(FP8) for name, tensor in ORIGINAL.items()}
FILES = {
    "fp32": original(torch.float32),
    "fp16": original(torch.float16),
    "bf16": original(torch.bfloat16),
    "fp8": PLAIN_FP8,
    "scaled_fp8": as_comfyui_scales(ORIGINAL),
    "prefixed": prefixed("model.diffusion_model.", original(torch.bfloat16)),
    "prefixed_fp8": prefixed("model.diffusion_model.", PLAIN_FP8),
    "checkpoint": checkpoint(original(torch.float16)),
    "checkpoint_scaled": checkpoint(as_comfyui_scales(ORIGINAL)),
    "without_guidance": WITHOUT_GUIDANCE,
    "diffusers": in_diffusers(torch.bfloat16),
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The folder with a file of each dialect, what both are given, and what ComfyUI made of it."""
    folder = tmp_path_factory.mktemp("files")
    random = torch.Generator().manual_seed(0)
    given = {
        "x": torch.randn(2, 16, 6, 4, generator=random),
        "sigma": torch.tensor([0.3, 0.9]),
        "text": torch.randn(2, 5, SHAPE.t5_width, generator=random),
        "pooled": torch.randn(2, SHAPE.clip_width, generator=random),
        "guidance": torch.tensor([2.5, 2.5]),
        "reference": torch.randn(2, 16, 4, 10, generator=random),
    }
    for name, tensors in FILES.items():
        write(folder / f"{name}.safetensors", tensors)
    write(folder / "inputs.safetensors", given)
    assert set(run_in_comfyui("forward_files.py", folder)) == FILES.keys()
    return folder, given


@pytest.mark.parametrize("name", FILES)
def test_comfyui_and_the_core_predict_the_same(compared, name):
    folder, given = compared
    found = load_file(folder / "outputs" / f"{name}.safetensors")
    transformer = load_transformer(folder / f"{name}.safetensors", torch.float32, CPU)
    inputs = [given[name] for name in ("x", "sigma", "text", "pooled", "guidance")]
    with torch.no_grad():
        plain, started = (predict_velocity(transformer, *inputs, None, reference) for reference in (None, given["reference"]))
    assert found.keys() == {"velocity", "from_reference", "from_reference_by_offset", "from_reference_by_index"}
    for how, theirs in found.items():
        ours = plain if how == "velocity" else started
        assert ((ours - theirs).norm() / theirs.norm()).item() < MOST_RELATIVE_DIFFERENCE, how
    assert ((plain - started).norm() / plain.norm()).item() > 100 * MOST_RELATIVE_DIFFERENCE


def test_comfyui_is_handed_the_parts_of_a_checkpoint_and_of_a_folder_by_its_own_names(tmp_path):
    clip, t5, vae = (set(load_file(path)) for path in (PICO_FILES.clip_l, PICO_FILES.t5, PICO_FILES.vae))
    whole = write(tmp_path / "all.safetensors", checkpoint(scaled_fp8(ORIGINAL)))
    handed = run_in_comfyui("hand_over.py", PACK_ROOT, *[whole] * 4)
    assert {part: set(names) for part, names in handed.items()} == {
        "transformer": set(ORIGINAL),
        "vae": vae,
        "clip_l": clip,
        "t5": t5,
    }
    assert handed["transformer"]["double_blocks.0.img_attn.qkv.weight"] == "bfloat16", "unpacked, not as float32"
    folder = write_pipeline(tmp_path / "folder")
    gguf = write_gguf(tmp_path / "flux.gguf", ORIGINAL, "Q8_0")
    handed = run_in_comfyui("hand_over.py", PACK_ROOT, gguf, PICO_FILES.vae, folder / "text_encoder", folder / "text_encoder_2")
    assert {part: set(names) for part, names in handed.items()} == {
        "transformer": set(ORIGINAL),
        "vae": vae,
        "clip_l": clip,
        "t5": t5,
    }
