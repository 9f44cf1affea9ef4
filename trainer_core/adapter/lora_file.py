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
from collections import Counter
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
from ..job_file import shown_job
from ..modelspec import modelspec_of
from ..writing import write_atomically
from .build import exported_parts
from .factors import change_norm
from .header import header_length, with_metadata
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


def lora_metadata(
    job: TrainJob, plan: AdapterPlan, flavour: Flavour, run_id: str, step: int, *, started: str = "", thumbnail: str = ""
) -> dict[str, str]:
    """The header: strings only. Nothing in it depends on when it is written, so the same run gives the same bytes."""
    ranks = sorted({module.rank for module in plan.modules} - {0})
    size = f" of rank {', '.join(map(str, ranks))}" if ranks else ""
    summary = f"{TITLES[plan.kind]}{size}, trained for {step} steps"
    return {
        **modelspec_of(job, flavour, summary, started, thumbnail),
        "flux_lora.run_id": run_id,
        "flux_lora.step": str(step),
        "flux_lora.job": json.dumps(shown_job(job), ensure_ascii=False),
        **job.metadata,
    }


def export_lora(
    path: Path, transformer: FluxTransformer2DModel, plan: AdapterPlan, dtype: torch.dtype, metadata: dict[str, str]
) -> None:
    """Write the adapter's file, atomically."""
    write_lora(path, adapter_tensors(transformer, plan, dtype), metadata)


def write_lora(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write an adapter's tensors under these keys, atomically; ModelSpec's digest of them goes into the header."""
    data = save(tensors)
    digest = hashlib.sha256(memoryview(data)[8 + header_length(data) :]).hexdigest()
    write_atomically(path, with_metadata(data, metadata | {"modelspec.hash_sha256": f"0x{digest}"}))


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
