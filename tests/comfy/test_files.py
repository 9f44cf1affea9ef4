"""FLUX's own files, read by the core and by ComfyUI: the same latents, pixels, tokens and text vectors."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from comfy_server import HOW_TO_GET_ONE, PACK_ROOT, find_comfyui, find_python


def test_the_core_reads_flux_files_as_comfyui_does(tmp_path):
    comfyui = find_comfyui()
    if comfyui is None:
        pytest.skip(HOW_TO_GET_ONE)
    done = subprocess.run(
        [find_python(comfyui), Path(__file__).with_name("compare_files.py"), tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (comfyui, PACK_ROOT)))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout.strip().splitlines()[-1])
    assert differences.keys() == {"vae encode", "vae decode", "clip tokens", "clip pooled", "t5 tokens", "t5 sequence"}
    assert max(differences.values()) < 1e-4, differences
