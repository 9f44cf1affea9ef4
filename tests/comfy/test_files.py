"""FLUX's own files, read by the core and by ComfyUI: the same latents, pixels, tokens and text vectors."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from comfy_server import HOW_TO_GET_ONE, PACK_ROOT, find_comfyui, find_python


def run_in_comfyui(script: str, *arguments: object) -> dict:
    """What a script of this folder prints as its last line, in ComfyUI's interpreter."""
    comfyui = find_comfyui()
    if comfyui is None:
        pytest.skip(HOW_TO_GET_ONE)
    done = subprocess.run(
        [find_python(comfyui), Path(__file__).with_name(script), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (comfyui, PACK_ROOT)))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_core_reads_flux_files_as_comfyui_does(tmp_path):
    differences = run_in_comfyui("compare_files.py", tmp_path)
    expected = {"vae encode", "vae decode", "clip tokens", "clip pooled", "t5 tokens", "t5 sequence", "t5 in scaled fp8"}
    assert differences.keys() == expected
    assert max(differences.values()) < 1e-4, differences


def test_the_trained_base_loads_from_files_with_its_lora(tmp_path):
    loaded = run_in_comfyui("load_files.py", PACK_ROOT, tmp_path)
    assert (loaded["model"], loaded["width"]) == ("Flux", 3072)
    assert "Flux" in loaded["clip"]
    assert loaded["latent"] == [1, 16, 4, 6]
    assert loaded["patched"] == ["diffusion_model.double_blocks.0.img_attn.proj.weight"] and not loaded["unpatched"]
