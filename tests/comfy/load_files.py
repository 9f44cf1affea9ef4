"""Loads FLUX files with the nodes' own code, as LoadTrainedFlux does, and prints what came out as one JSON object.

Run by test_files.py in ComfyUI's interpreter: load_files.py PACK_ROOT FOLDER. The transformer has FLUX.1's width in one double
block, CLIP-L and VAE their real sizes; of T5 XXL the file holds the one matrix by which ComfyUI knows it, because all of it
would need 9 GB. So MODEL and VAE are used, and of CLIP it is asked only what kind it is.
"""

import importlib
import json
import sys
import types
from pathlib import Path

import torch

ROOT, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])
sys.argv = [sys.argv[0], "--cpu"]  # ComfyUI reads the command line when it is imported

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

for name, path in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):  # the packages, without ComfyUI's loader
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(path)]
comfy_flux = importlib.import_module("pack.nodes.comfy_flux")
names = importlib.import_module("pack.trainer_core.flux.names")
load = importlib.import_module("pack.trainer_core.flux.load")
text = importlib.import_module("pack.trainer_core.flux.text")
vae = importlib.import_module("pack.trainer_core.flux.vae")
job = importlib.import_module("pack.trainer_core.job")

SHAPE = load.FluxShape(1, 0, 3072, 64, 4096, 768, True)
LAYER = "transformer_blocks.0.attn.to_out.0"
T5_MARK = "encoder.block.23.layer.1.DenseReluDense.wi_1.weight"


@torch.no_grad()
def write_files() -> dict[str, str]:
    """The four files, as users have them; returns their paths by the job's fields."""
    paths = {name: str(FOLDER / f"{name}.safetensors") for name in ("transformer", "vae", "clip_l", "t5")}
    flux = load.empty_transformer(SHAPE).to_empty(device="cpu").bfloat16()
    for parameter in flux.parameters():
        torch.nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else parameter.fill_(0.1)
    save_file(names.to_original(flux.state_dict(), 1, 0, True), paths["transformer"])
    save_file(vae.AutoencoderKL(**vae.FLUX_VAE).state_dict(), paths["vae"])
    clip = CLIPTextModel(CLIPTextConfig(**text.CLIP_L)).state_dict()
    stored = {text.CLIP_PREFIX + key.removeprefix(text.CLIP_PREFIX): t for key, t in clip.items() if "position_ids" not in key}
    save_file(stored, paths["clip_l"])
    save_file({T5_MARK: torch.zeros(10240, 4096, dtype=torch.bfloat16)}, paths["t5"])
    return {f"{name}_path": path for name, path in paths.items()}


def write_lora(alpha: float) -> Path:
    """A LoRA of rank 2 on one layer of that transformer."""
    tensors = {".lora_A.weight": torch.randn(2, 3072), ".lora_B.weight": torch.randn(3072, 2), ".alpha": torch.tensor(alpha)}
    save_file({f"transformer.{LAYER}{part}": tensor for part, tensor in tensors.items()}, FOLDER / "lora.safetensors")
    return FOLDER / "lora.safetensors"


if __name__ == "__main__":
    torch.manual_seed(0)
    base = job.BaseModelSpec(
        model_flavour="dev", clip_tokenizer_path=str(FOLDER), t5_tokenizer_path=str(FOLDER), **write_files()
    )
    model, clip, autoencoder = comfy_flux.load_flux(base)
    with_lora = comfy_flux.apply_lora(model, write_lora(1.0), 1.0)
    pixels = torch.rand(1, 32, 48, 3)
    print(
        json.dumps(
            {
                "model": type(model.model).__name__,
                "width": model.model.diffusion_model.hidden_size,
                "clip": type(clip.cond_stage_model).__name__,
                "latent": list(autoencoder.encode(pixels).shape),
                "patched": sorted(with_lora.patches),
                "unpatched": sorted(model.patches),
            }
        )
    )
