"""What ComfyUI's own FLUX makes of each transformer file of a folder, for the same latent, sigma and text, in float32.

Run by test_forward.py in ComfyUI's interpreter: forward_files.py FOLDER. Reads FOLDER/inputs.safetensors, loads each other
.safetensors file as UNETLoader does, writes the predicted velocities to FOLDER/outputs/<name>.safetensors, those with the
reference latent too, and prints the names.
"""

import json
import sys
from pathlib import Path

import torch

FOLDER = Path(sys.argv[1])
sys.argv = [sys.argv[0], "--cpu"]  # ComfyUI reads the command line when it is imported

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_detection  # noqa: E402
import comfy.sd  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

HEAD_DIM = 128
detect = comfy.model_detection.detect_unet_config


def detect_small(tensors: dict[str, torch.Tensor], prefix: str, *others: object, **options: object) -> dict | None:
    """ComfyUI 0.3.64 takes FLUX.1's widths for granted; here they are read off the file, as newer ones do."""
    config = detect(tensors, prefix, *others, **options)
    if config and config.get("image_model") == "flux":
        width = tensors[f"{prefix}img_in.weight"].shape[0]
        config |= {"hidden_size": width, "num_heads": width // HEAD_DIM}
        config |= {"context_in_dim": tensors[f"{prefix}txt_in.weight"].shape[1]}
    return config


comfy.model_detection.detect_unet_config = detect_small


@torch.no_grad()
def velocities(path: Path, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """ComfyUI's model gives the picture it foresees, x - sigma * velocity."""
    model = comfy.sd.load_diffusion_model(str(path), {"dtype": torch.float32}).model  # of scaled fp8 it would take bf16
    text = {"c_crossattn": given["text"], "y": given["pooled"], "guidance": given["guidance"]}

    def velocity(**references: list[torch.Tensor] | str) -> torch.Tensor:
        foreseen = model.apply_model(given["x"], given["sigma"], **text, **references)
        return ((given["x"] - foreseen) / given["sigma"].reshape(-1, 1, 1, 1)).float()

    methods = {
        f"from_reference_by_{method}": velocity(ref_latents=[given["reference"]], ref_latents_method=method)
        for method in ("offset", "index")  # as FluxKontextMultiReferenceLatentMethod sets it
    }
    return {"velocity": velocity(), "from_reference": velocity(ref_latents=[given["reference"]]), **methods}


if __name__ == "__main__":
    inputs = load_file(FOLDER / "inputs.safetensors")
    (FOLDER / "outputs").mkdir()
    paths = [path for path in sorted(FOLDER.glob("*.safetensors")) if path.stem != "inputs"]
    for path in paths:
        save_file(velocities(path, inputs), FOLDER / "outputs" / path.name)
    print(json.dumps([path.stem for path in paths]))
