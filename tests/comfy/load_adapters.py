"""Loads adapter files onto pico with ComfyUI's own loader, and keeps by how much each weight changes.

Run by test_adapter_files.py in ComfyUI's interpreter: load_adapters.py PACK_ROOT FOLDER. For every FOLDER/*.safetensors it
writes FOLDER/changes/<name>.safetensors with the changes by ComfyUI's names of the weights, and prints as one JSON object how
many keys of the file were loaded.
"""

import importlib
import json
import sys
import types
from pathlib import Path

ROOT, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])
sys.argv = [sys.argv[0], "--cpu"]  # ComfyUI reads the command line when it is imported

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.utils  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

for name, path in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):  # the packages, without ComfyUI's loader
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(path)]
comfy_flux = importlib.import_module("pack.nodes.comfy_flux")
job = importlib.import_module("pack.trainer_core.job")


def load(model, path: Path) -> dict[str, int]:
    """Put the file on the model as LoraLoaderModelOnly does; the changes go to disk, in float32."""
    tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(path), safe_load=True))
    patches = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(model.model, {}))
    patched = model.clone()
    applied = patched.add_patches(patches, 1.0)
    weights, changes = model.model.state_dict(), {}
    for key, patch in patched.patches.items():
        weight = weights[key].float()
        changes[key] = comfy.lora.calculate_weight(patch, weight.clone(), key) - weight
    (FOLDER / "changes").mkdir(exist_ok=True)
    save_file(changes, FOLDER / "changes" / path.name)
    loaded = set().union(*(patch.loaded_keys for patch in patches.values()))
    return {"keys": len(tensors), "loaded": len(loaded & tensors.keys()), "modules": len(patches), "applied": len(applied)}


if __name__ == "__main__":
    model, _, _ = comfy_flux.load_flux(job.BaseModelSpec(model_flavour="pico"))
    print(json.dumps({path.stem: load(model, path) for path in sorted(FOLDER.glob("*.safetensors"))}))
