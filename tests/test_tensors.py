"""A model's file is read without becoming this process's memory."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer_core.flux import tensors
from trainer_core.flux.tensors import open_tensors

MIB = 1 << 20
NAMES = [f"layer {number:02}" for number in range(16)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """16 layers of 4 MiB in float32."""
    save_file(
        {name: torch.full((1024, 1024), float(number)) for number, name in enumerate(NAMES)}, tmp_path / "model.safetensors"
    )
    return tmp_path / "model.safetensors"


def mapped_bytes(path: Path) -> int:
    """How much of the file is resident in this process."""
    resident, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return resident


@pytest.mark.skipif(sys.platform != "linux", reason="what is mapped is told by Linux alone")
def test_what_was_converted_is_let_go_and_what_is_viewed_stays(model, monkeypatch):
    monkeypatch.setattr(tensors, "MAPPED_ANEW", 8 * MIB)
    source = open_tensors(model)
    converted, most = [], 0
    for name in NAMES:
        converted.append(source.read(name).bfloat16())
        most = max(most, mapped_bytes(model))
    assert 8 * MIB <= most < 13 * MIB, "what is read until the file is mapped anew, and no more"
    views = [source.read(name) for name in NAMES]
    for number, (view, half) in enumerate(zip(views, converted, strict=True)):
        assert view.unique().tolist() == half.unique().tolist() == [number]
    assert mapped_bytes(model) >= 64 * MIB, "a model that trains on the file's own numbers holds them only there"
