"""Counts, below the guider, what the model is asked for in one sampling: conditional and unconditional predictions.

Run by test_guider.py in ComfyUI's interpreter: count_predictions.py PACK_ROOT. Prints, for each case, both counts, what the
guider itself reports of them, and whether the sampler's latents, the noise and the schedule came through unchanged.
"""

import importlib
import json
import sys
import types
from pathlib import Path

import torch

ROOT = Path(sys.argv[1])
sys.argv = [sys.argv[0], "--cpu"]  # ComfyUI reads the command line when it is imported

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.samplers  # noqa: E402

for name, path in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):  # the packages, without ComfyUI's loader
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(path)]
comfy_flux = importlib.import_module("pack.nodes.comfy_flux")
adaptive = importlib.import_module("pack.nodes.adaptive_cfg")
pico = importlib.import_module("pack.trainer_core.pico")

STEPS = 5
CASES = {
    "off": ("euler", {}),
    "two steps disabled": ("euler", {"initial_disabled_steps": 2}),
    "heun, two steps disabled": ("heun", {"initial_disabled_steps": 2}),
    "all steps disabled": ("seeds_3", {"initial_disabled_steps": STEPS}),
    "ends at once": ("euler", {"threshold": 0.0, "uncond_zero_scale": 0.9}),
}


def conditioning(seed: int) -> list:
    random = torch.Generator().manual_seed(seed)
    text, pooled = torch.randn(1, 32, 128, generator=random), torch.randn(1, 64, generator=random)
    return [[text, {"pooled_output": pooled, "guidance": 2.5}]]


def count(sampler: str, rules: dict) -> dict:
    """One sampling of two pictures with these rules."""
    counted, kept, noise = [0, 0], [], torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    model = comfy_flux._load_pico_transformer(pico.TRANSFORMER_PATH)

    def below(apply_model, args):
        for is_unconditional in args["cond_or_uncond"]:
            counted[is_unconditional] += 1
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(below)
    guider = adaptive.AdaptiveCFGGuider(model, adaptive.Rules(**rules), kept.extend)
    guider.set_conds(conditioning(1), conditioning(2))
    guider.set_cfg(3.0)
    unchanged = []
    predict = guider.predict_noise

    def watched(x, *args, **kwargs):
        before = x.clone()
        result = predict(x, *args, **kwargs)
        unchanged.append(torch.equal(x, before))
        return result

    guider.predict_noise = watched
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    given = noise.clone(), sigmas.clone()
    guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object(sampler), sigmas, seed=0)
    unchanged += [torch.equal(noise, given[0]), torch.equal(sigmas, given[1])]
    told = sum(evaluation.num_predictions for evaluation in kept)
    return {"conditional": counted[0], "unconditional": counted[1], "told": told, "unchanged": all(unchanged)}


if __name__ == "__main__":
    with torch.inference_mode():
        print(json.dumps({name: count(*case) for name, case in CASES.items()}))
