"""What LoadTrainedFlux hands to ComfyUI's loaders of the parts of a base: names and formats, printed as JSON.

Run by test_forward.py in ComfyUI's interpreter: hand_over.py PACK_ROOT TRANSFORMER VAE CLIP T5, each a file or a folder.
"""

import importlib
import json
import sys
import types
from pathlib import Path

ROOT, PATHS = Path(sys.argv[1]), list(map(Path, sys.argv[2:]))
sys.argv = [sys.argv[0], "--cpu"]  # ComfyUI reads the command line when it is imported

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

for name, path in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):  # the packages, without ComfyUI's loader
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(path)]
comfy_flux = importlib.import_module("pack.nodes.comfy_flux")
dialects = importlib.import_module("pack.trainer_core.flux.dialects")
OPENERS = {
    "transformer": dialects.open_transformer,
    "vae": dialects.open_vae,
    "clip_l": dialects.open_clip,
    "t5": dialects.open_t5,
}

if __name__ == "__main__":
    handed = {}
    for (part, opener), path in zip(OPENERS.items(), PATHS, strict=True):
        tensors = comfy_flux.tensors_for_comfyui(path, part, opener)
        handed[part] = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    print(json.dumps(handed))
