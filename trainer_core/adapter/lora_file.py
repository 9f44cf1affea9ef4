"""The LoRA as a file that ComfyUI and diffusers read alike.

Keys: `transformer.<diffusers module>.lora_A.weight` (rank, in), `.lora_B.weight` (out, rank) and `.alpha` (a scalar). ComfyUI
takes the strength as alpha / rank from the tensor `.alpha` and knows nothing of alpha in the header, so it is always written.
The header holds the job and run, the ModelSpec fields that model libraries show, and ComfyUI's workflow where there was one:
dropped onto the canvas, the file brings back the graph that made it.
"""

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save
from torch import Tensor

from ..flux.files import read_header, read_tensors
from ..flux.flavours import Flavour
from ..job import TrainJob
from ..run_dir import write_atomically
from .build import ADAPTER, effective_alpha, lora_layers

PREFIX = "transformer."
DOWN, UP, ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"
SAVE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def lora_tensors(transformer: FluxTransformer2DModel, alpha: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """The adapter's tensors under the file's keys, on the CPU."""
    tensors = {}
    for name, layer in lora_layers(transformer).items():
        tensors[PREFIX + name + DOWN] = layer.lora_A[ADAPTER].weight.detach().to("cpu", dtype).contiguous()
        tensors[PREFIX + name + UP] = layer.lora_B[ADAPTER].weight.detach().to("cpu", dtype).contiguous()
        tensors[PREFIX + name + ALPHA] = torch.tensor(alpha, dtype=torch.float32)
    return tensors


def lora_metadata(job: TrainJob, flavour: Flavour, run_id: str, step: int) -> dict[str, str]:
    """The header: strings only. Without a date, so that the same run gives the same bytes."""
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{flavour.architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": job.name,
        "modelspec.resolution": f"{flavour.home_resolution}x{flavour.home_resolution}",
        "modelspec.description": f"LoRA of rank {job.lora.lora_rank}, trained for {step} steps",
        "flux_lora.run_id": run_id,
        "flux_lora.step": str(step),
        "flux_lora.job": json.dumps(job.model_dump(mode="json", exclude={"metadata"}), ensure_ascii=False),
        **job.metadata,
    }


def export_lora(
    path: Path, transformer: FluxTransformer2DModel, job: TrainJob, flavour: Flavour, run_id: str, step: int
) -> None:
    """Write the LoRA file, atomically."""
    tensors = lora_tensors(transformer, effective_alpha(job.lora), SAVE_DTYPES[job.lora.lora_save_precision])
    write_atomically(path, with_sorted_header(save(tensors, metadata=lora_metadata(job, flavour, run_id, step))))


def with_sorted_header(data: bytes) -> bytes:
    """The same safetensors file with its header in alphabetical order: the library's own order differs from call to call."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


@dataclass(frozen=True)
class LoraModule:
    """One adapted layer of a file. `norm` is that of alpha / rank * B A, the change at strength 1."""

    name: str
    rank: int
    alpha: float
    norm: float


def inspect_lora(path: Path) -> dict[str, Any]:
    """What a LoRA file holds: modules, ranks, alphas, norms, metadata. JobError when it is not a readable file."""
    metadata = read_header(path).get("__metadata__", {})
    tensors = read_tensors(path)
    stems = sorted(key.removesuffix(DOWN) for key in tensors if key.endswith(DOWN))
    modules = [_module(stem, tensors) for stem in stems]
    return {
        "path": str(path.absolute()),
        "bytes": path.stat().st_size,
        "modules": len(modules),
        "parameters": sum(t.numel() for key, t in tensors.items() if not key.endswith(ALPHA)),
        "ranks": sorted({module.rank for module in modules}),
        "alphas": sorted({module.alpha for module in modules}),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for key, t in tensors.items() if not key.endswith(ALPHA)}),
        "targets": _count_targets(modules),
        "norms": {module.name: module.norm for module in modules},
        "metadata": metadata,
    }


def _module(stem: str, tensors: dict[str, Tensor]) -> LoraModule:
    down, up = tensors[stem + DOWN].float(), tensors[stem + UP].float()
    rank = down.shape[0]
    alpha = float(tensors.get(stem + ALPHA, torch.tensor(float(rank))))
    # ||B A||_F from the small Gram matrices, without the full product
    squared = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0)
    return LoraModule(stem.removeprefix(PREFIX), rank, alpha, round(alpha / rank * squared.sqrt().item(), 6))


def _count_targets(modules: list[LoraModule]) -> dict[str, int]:
    """How many modules of each kind, by the name without its block's number."""
    counts: dict[str, int] = {}
    for module in modules:
        kind = re.sub(r"_blocks\.\d+\.", "_blocks.*.", module.name)
        counts[kind] = counts.get(kind, 0) + 1
    return counts
