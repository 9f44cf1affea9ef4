"""The adapter as a file that ComfyUI reads.

A LoRA's keys are `transformer.<diffusers layer>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank), which diffusers
reads too; a LoKr's and LoHa's are LyCORIS', `lycoris_<layer, with _ for .>.lokr_w1` and so on. Beside them stands `.alpha`, a
scalar: ComfyUI takes the strength as alpha / rank from it and knows nothing of alpha in the header, so it is always written.
The header holds the job and run, the ModelSpec fields that model libraries show, and ComfyUI's workflow where there was one:
dropped onto the canvas, the file brings back the graph that made it.
"""

import hashlib
import json
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save
from torch import Tensor

from ..flux.files import read_header, read_tensors
from ..flux.flavours import Flavour
from ..flux.names import linear_names
from ..job import TrainJob
from ..writing import write_atomically
from .build import exported_parts
from .factors import change_norm
from .plan import AdapterPlan, given_module
from .starts import Parts

ALPHA = ".alpha"
SAVE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TITLES = {"lora": "LoRA", "lokr": "LoKr", "loha": "LoHa"}
MOST_BLOCKS = 19, 38  # of any FLUX.1

# kind -> part -> how its key ends
PART_SUFFIXES = {
    "lora": {"down": ".lora_A.weight", "up": ".lora_B.weight"},
    "lokr": {part: f".lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
    "loha": {part: f".hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b")},
}


def key_stem(kind: str, name: str) -> str:
    """What the keys of a layer begin with."""
    return f"transformer.{name}" if kind == "lora" else f"lycoris_{name.replace('.', '_')}"


def adapter_tensors(transformer: FluxTransformer2DModel, plan: AdapterPlan, dtype: torch.dtype) -> dict[str, Tensor]:
    """The adapter's tensors under the file's keys, on the CPU."""
    tensors, parts = {}, exported_parts(transformer, plan)
    for module in plan.exported:
        stem = key_stem(plan.kind, module.name)
        for part, tensor in parts[module.name].items():
            tensors[stem + PART_SUFFIXES[plan.kind][part]] = tensor.to("cpu", dtype).contiguous()
        tensors[stem + ALPHA] = torch.tensor(module.alpha, dtype=torch.float32)
    return tensors


def lora_metadata(job: TrainJob, plan: AdapterPlan, flavour: Flavour, run_id: str, step: int) -> dict[str, str]:
    """The header: strings only. Without a date, so that the same run gives the same bytes."""
    ranks = sorted({module.rank for module in plan.modules} - {0})
    size = f" of rank {', '.join(map(str, ranks))}" if ranks else ""
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{flavour.architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": job.name,
        "modelspec.resolution": f"{flavour.home_resolution}x{flavour.home_resolution}",
        "modelspec.description": f"{TITLES[plan.kind]}{size}, trained for {step} steps",
        "flux_lora.run_id": run_id,
        "flux_lora.step": str(step),
        "flux_lora.job": json.dumps(job.model_dump(mode="json", exclude={"metadata"}), ensure_ascii=False),
        **job.metadata,
    }


def export_lora(
    path: Path, transformer: FluxTransformer2DModel, plan: AdapterPlan, dtype: torch.dtype, metadata: dict[str, str]
) -> None:
    """Write the adapter's file, atomically."""
    write_lora(path, adapter_tensors(transformer, plan, dtype), metadata)


def write_lora(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write an adapter's tensors under these keys, atomically; ModelSpec's digest of them goes into the header."""
    data = save(tensors, metadata=metadata)
    (length,) = struct.unpack("<Q", data[:8])
    digest = hashlib.sha256(memoryview(data)[8 + length :]).hexdigest()
    write_atomically(path, with_sorted_header(data, {"modelspec.hash_sha256": f"0x{digest}"}))


def with_sorted_header(data: bytes, more: Mapping[str, str] | None = None) -> bytes:
    """The same safetensors file, its metadata with `more`, its header in alphabetical order: the library's own order differs
    from call to call."""
    (length,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8 : 8 + length])
    if more:
        entries["__metadata__"] = entries.get("__metadata__", {}) | more
    header = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


@dataclass(frozen=True)
class FileModule:
    """One adapted layer of a file: what its keys begin with, its name, kind, alpha (None: not given) and parts."""

    stem: str
    name: str
    kind: str
    alpha: float | None
    parts: Parts


def read_modules(tensors: dict[str, Tensor]) -> list[FileModule]:
    """The adapted layers among the tensors of a file in our own naming, by name; other keys are left out."""
    parts: dict[tuple[str, str], Parts] = {}
    for key, tensor in tensors.items():
        for kind, suffixes in PART_SUFFIXES.items():
            for part, suffix in suffixes.items():
                if key.endswith(suffix):
                    parts.setdefault((key.removesuffix(suffix), kind), {})[part] = tensor
    layers = {key_stem("lokr", name.diffusers): name.diffusers for name in linear_names(*MOST_BLOCKS, True)}
    modules = [
        FileModule(
            stem,
            layers.get(stem, stem.removeprefix("transformer.")),
            kind,
            tensors[stem + ALPHA].item() if stem + ALPHA in tensors else None,
            found,
        )
        for (stem, kind), found in parts.items()
        if kind != "lora" or found.keys() == PART_SUFFIXES["lora"].keys()
    ]
    return sorted(modules, key=lambda module: module.name)


def inspect_lora(path: Path) -> dict[str, Any]:
    """What an adapter's file holds: kind, layers, ranks, alphas, norms of the change at strength 1, metadata.

    JobError when it is not a readable file.
    """
    metadata, tensors = read_header(path).get("__metadata__", {}), read_tensors(path)
    found = read_modules(tensors)
    planned = {module.name: given_module(module.name, module.alpha, module.parts) for module in found}
    norms = {m.name: round(change_norm(m.kind, m.parts, planned[m.name].strength), 6) for m in found}
    return {
        "path": str(path.absolute()),
        "bytes": path.stat().st_size,
        "kind": ", ".join(sorted({module.kind for module in found})),
        "modules": len(found),
        "parameters": sum(module.num_parameters for module in planned.values()),
        "ranks": sorted({module.rank for module in planned.values()}),
        "alphas": sorted({module.alpha for module in planned.values()}),
        "strengths": sorted({module.strength for module in planned.values()}),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for key, t in tensors.items() if not key.endswith(ALPHA)}),
        "targets": dict(Counter(re.sub(r"_blocks\.\d+\.", "_blocks.*.", module.name) for module in found)),
        "norms": norms,
        "strongest": sorted(norms, key=lambda name: -norms[name])[:10],
        "metadata": metadata,
    }
