"""What ComfyUI makes of adapter files: for each, the change of every weight it patches, and the keys that it leaves unread.

Run by test_dialect_files.py in ComfyUI's interpreter: adapter_changes.py FOLDER NUM_DOUBLE NUM_SINGLE WIDTH T5 CLIP IN.
Reads each .safetensors file of FOLDER and writes its changes, by the original's names, to FOLDER/changes. The model is
ComfyUI's own class on the meta device: names and sizes are all that is needed, since the changes are added to zeros.
"""

import json
import logging
import sys
from pathlib import Path

import torch

FOLDER, (DOUBLE, SINGLE, WIDTH, T5_WIDTH, CLIP_WIDTH, IN) = Path(sys.argv[1]), map(int, sys.argv[2:])
sys.argv = [sys.argv[0], "--cpu"]  # ComfyUI reads the command line when it is imported

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

SIZES = {"depth": DOUBLE, "depth_single_blocks": SINGLE, "hidden_size": WIDTH, "num_heads": WIDTH // 128}
SIZES |= {"context_in_dim": T5_WIDTH, "vec_in_dim": CLIP_WIDTH, "in_channels": IN // 4, "out_channels": IN // 4}
REST = {"image_model": "flux", "mlp_ratio": 4.0, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2}
PREFIX, CPU = "diffusion_model.", torch.device("cpu")


class Unread(logging.Handler):
    """Collects the keys that ComfyUI says it has not loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.keys.append(record.getMessage().removeprefix("lora key not loaded: "))


def changes(path: Path, model: comfy.model_base.Flux) -> dict[str, torch.Tensor]:
    """As LoraLoaderModelOnly loads the file, at strength 1."""
    file = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(path), safe_load=True))
    patches = comfy.lora.load_lora(file, comfy.lora.model_lora_keys_unet(model, {}))
    patcher = comfy.model_patcher.ModelPatcher(model, CPU, CPU)
    assert len(patcher.add_patches(patches, 1.0)) == len(patches)
    weights = model.state_dict()
    return {
        key.removeprefix(PREFIX).removesuffix(".weight"): comfy.lora.calculate_weight(
            added, torch.zeros(weights[key].shape), key
        )
        for key, added in patcher.patches.items()
    }


if __name__ == "__main__":
    config = comfy.supported_models.Flux({**REST, **SIZES, "qkv_bias": True, "guidance_embed": True})
    flux = comfy.model_base.Flux(config, device=torch.device("meta"))
    (FOLDER / "changes").mkdir()
    left: dict[str, list[str]] = {}
    for adapter in sorted(FOLDER.glob("*.safetensors")):
        logging.getLogger().addHandler(unread := Unread())
        save_file(changes(adapter, flux), FOLDER / "changes" / adapter.name)
        logging.getLogger().removeHandler(unread)
        left[adapter.stem] = unread.keys
    print(json.dumps(left))
