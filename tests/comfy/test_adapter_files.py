"""Adapter files in a real ComfyUI: every key is loaded, and each weight changes by what was trained."""

import pytest
import torch
from comfy_server import PACK_ROOT
from safetensors.torch import load_file
from test_files import run_in_comfyui
from torch import Tensor

from trainer_core.adapter.build import add_adapter, exported_parts
from trainer_core.adapter.factors import change
from trainer_core.adapter.lora_file import adapter_tensors, export_lora
from trainer_core.adapter.plan import plan_adapter
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import empty_transformer, load_transformer, read_shape
from trainer_core.flux.names import SWAPPED_HALVES, linear_names
from trainer_core.specs.adapter import LoraSpec

SHAPE = read_shape(PICO_FILES.transformer)
EVERYTHING = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_mlp",
    "proj_out",
    "linear",
    "linear_1",
    "linear_2",
    "proj",
    "x_embedder",
)
KINDS = {
    "lora": LoraSpec(flux_lora_target="ai-toolkit", lora_rank=4, lora_alpha=2.0, rank_pattern=("single 0-1: 8",)),
    "everywhere": LoraSpec(flux_lora_target="custom", peft_lora_target_modules=EVERYTHING, lora_rank=2),
    "pissa": LoraSpec(flux_lora_target="all+ffs", lora_rank=4, lora_alpha=2.0, lora_init_type="pissa"),
    "olora": LoraSpec(flux_lora_target="all+ffs", lora_rank=4, lora_init_type="olora"),
    "lokr": LoraSpec(flux_lora_target="ai-toolkit", lora_type="lokr", lora_alpha=3.0),
    "lokr_split": LoraSpec(
        flux_lora_target="ai-toolkit", lora_type="lokr", lokr_full_matrix=False, lora_rank=4, lora_alpha=2.0
    ),
    "loha": LoraSpec(flux_lora_target="ai-toolkit", lora_type="loha", lora_rank=4, lora_alpha=2.0),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Each kind as if it had been trained, written, and loaded by ComfyUI: folder, what ComfyUI says, our own changes."""
    folder = tmp_path_factory.mktemp("adapters")
    changes, keys = {}, {}
    for kind, spec in KINDS.items():
        plan = plan_adapter(empty_transformer(SHAPE), spec)
        transformer = load_transformer(PICO_FILES.transformer, torch.float32, torch.device("cpu"))
        random = torch.Generator().manual_seed(1)
        for parameter in add_adapter(transformer, plan, seed=0).values():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)
        export_lora(folder / f"{kind}.safetensors", transformer, plan, torch.float32, {})
        parts, strengths = exported_parts(transformer, plan), {module.name: module.strength for module in plan.modules}
        changes[kind] = {name: change(plan.kind, parts[name], strengths[name]) for name in plan.names}
        keys[kind] = len(adapter_tensors(transformer, plan, torch.float32))
    return folder, run_in_comfyui("load_adapters.py", PACK_ROOT, folder), changes, keys


@pytest.mark.parametrize("kind", KINDS)
def test_comfyui_loads_every_key(trained, kind):
    _, loaded, changes, keys = trained
    modules = len(changes[kind])
    assert loaded[kind] == {"keys": keys[kind], "loaded": keys[kind], "modules": modules, "applied": modules}


@pytest.mark.parametrize("kind", KINDS)
def test_comfyui_changes_each_weight_by_what_was_trained(trained, kind):
    folder, _, changes, _ = trained
    theirs, ours = load_file(folder / "changes" / f"{kind}.safetensors"), changes[kind]
    for name, change_made in ours.items():
        assert difference(change_made, in_comfyui(theirs, name)) < 1e-4, name
    touched = {f"diffusion_model.{n.original}.weight" for n in linear_names(2, 4, True) if n.diffusers in ours}
    assert theirs.keys() == touched


def in_comfyui(changes: dict[str, Tensor], name: str) -> Tensor:
    """The rows of ComfyUI's weight that are this layer's, in our order."""
    entry = next(entry for entry in linear_names(SHAPE.num_double, SHAPE.num_single, SHAPE.guidance) if entry.diffusers == name)
    weight = changes[f"diffusion_model.{entry.original}.weight"]
    if entry.rows:
        weight = weight[entry.rows[0] * SHAPE.width : entry.rows[1] * SHAPE.width]
    return torch.cat(weight.chunk(2)[::-1]) if name == SWAPPED_HALVES else weight


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the size of the change."""
    return ((ours - theirs).norm() / ours.norm()).item()
