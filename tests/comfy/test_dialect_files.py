"""Adapter files, read by the core and by ComfyUI: the same change of every weight, in each naming and kind."""

from dataclasses import replace

import torch
from foreign_adapters import DIALECTS, MAKERS, keys, lora, original_changes, random_layers
from safetensors.torch import load_file, save_file
from test_files import run_in_comfyui

from trainer_core.adapter.dialects import open_adapter, read_adapter
from trainer_core.adapter.low_rank import Wanted
from trainer_core.adapter.rework import Output, convert, merge, resize
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import FluxShape, read_shape

SHAPE = read_shape(PICO_FILES.transformer)


def read_by_both(folder, shape: FluxShape) -> dict[str, float]:
    """By file, the largest difference between the two readings, relative to the size of the changes."""
    sizes = (shape.num_double, shape.num_single, shape.width, shape.t5_width, shape.clip_width, shape.in_channels)
    unread = run_in_comfyui("adapter_changes.py", folder, *sizes)
    assert not any(unread.values()), unread
    differences = {}
    for name in unread:
        theirs = load_file(folder / "changes" / f"{name}.safetensors")
        modules = read_adapter(folder / f"{name}.safetensors", shape).modules
        ours = original_changes({layer: factors.delta() for layer, factors in modules.items()}, shape)
        assert theirs.keys() <= ours.keys()
        changed = {layer for layer, change in ours.items() if change.any()}
        assert changed == theirs.keys()
        differences[name] = max(((ours[key] - theirs[key]).abs().max() / theirs[key].abs().max()).item() for key in theirs)
    return differences


def rework(folder) -> None:
    """What the tools make of some of the files, beside them."""
    source, lokr = (
        open_adapter(folder / "diffusers lora.safetensors", SHAPE),
        open_adapter(folder / "lycoris lokr.safetensors", SHAPE),
    )
    for naming in ("kohya", "diffusion_model"):
        convert(source, naming, Output(folder / f"converted to {naming}.safetensors"))
    loha = open_adapter(folder / "lycoris loha.safetensors", SHAPE)
    convert(loha, "kohya", Output(folder / "converted loha.safetensors"))
    resize(lokr, Wanted(8), Output(folder / "resized.safetensors"))
    merge([source, loha], [0.5, -0.25], None, Output(folder / "merged.safetensors"))
    merge([source, lokr], [1.0, 1.0], Wanted(8), Output(folder / "merged to a rank.safetensors"))


def test_every_naming_and_kind_means_what_it_means_to_comfyui(tmp_path):
    for dialect in (name for name, dialect in DIALECTS.items() if dialect.comfyui):
        for kind in MAKERS if dialect in ("lycoris", "kohya") else ("lora",):
            tensors = keys(DIALECTS[dialect], random_layers(SHAPE, DIALECTS[dialect].original, kind))
            save_file(tensors, tmp_path / f"{dialect} {kind}.safetensors".replace(".weight", "weight"))
    rework(tmp_path)
    differences = read_by_both(tmp_path, SHAPE)
    assert len(differences) == 10 + 2 * 5 + 6
    assert max(differences.values()) < 1e-4, differences


def test_a_file_without_alpha_means_what_it_means_to_comfyui(tmp_path):
    layers = random_layers(SHAPE, False, "lora")
    without = {layer: {part: tensor for part, tensor in parts.items() if part != "alpha"} for layer, parts in layers.items()}
    save_file(keys(DIALECTS["diffusers"], without), tmp_path / "without.safetensors")
    assert read_by_both(tmp_path, SHAPE)["without"] < 1e-4


def test_the_names_of_uso_mean_what_they_mean_to_comfyui(tmp_path):
    shape, random = replace(SHAPE, num_double=19, num_single=38), torch.Generator().manual_seed(0)
    D = shape.width  # ComfyUI knows USO by the blocks of a whole FLUX
    sizes = {"qkv_lora1": (3 * D, D), "qkv_lora2": (3 * D, D), "proj_lora1": (D, D), "proj_lora2": (D, D)}
    places = {f"double_blocks.18.processor.{name}": size for name, size in sizes.items()}
    places |= {"single_blocks.37.processor.qkv_lora": (3 * D, D), "single_blocks.37.processor.proj_lora": (D, 5 * D)}
    tensors = {
        f"{place}.{part}.weight": tensor
        for place, size in places.items()
        for part, tensor in lora(*size, random, alpha=None).items()
    }
    save_file(tensors, tmp_path / "uso.safetensors")
    assert read_by_both(tmp_path, shape)["uso"] < 1e-4
