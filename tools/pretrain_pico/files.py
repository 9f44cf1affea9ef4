"""Small things that every command of this folder does: write atomically, keep a checkpoint, time by steps."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from trainer_core.cpu_speed import bf16_slowdown

CHECKPOINT_NAME = "checkpoint.pt"


def device() -> torch.device:
    """CUDA where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def in_bf16(device: torch.device) -> torch.autocast:
    """In here products are in bfloat16, but on a processor without instructions for it, which takes many times as long."""
    is_fast = device.type != "cpu" or bf16_slowdown() < 1.0
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_fast)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_json(path: Path, value: object) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, atomically. Tensors are copied, so that shared storage is written out in full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
    os.replace(temporary, path)


def save_checkpoint(folder: Path, state: dict) -> None:
    """The state of a training run. Read back by torch with weights_only, so it holds tensors and plain values alone."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{CHECKPOINT_NAME}.{os.getpid()}"
    torch.save(state, temporary)
    os.replace(temporary, folder / CHECKPOINT_NAME)


def load_checkpoint(folder: Path) -> dict | None:
    """The last saved state of the run in the folder, or None where it has not begun."""
    path = folder / CHECKPOINT_NAME
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def cosine_rate(step: int, num_steps: int, peak: float, warm_up: int, floor: float = 0.02) -> float:
    """Linear warm-up, then half a cosine down to floor * peak at num_steps; a function of the step alone."""
    progress = min(1.0, max(0.0, (step - warm_up) / max(1, num_steps - warm_up)))
    return peak * min(1.0, (step + 1) / warm_up) * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))
