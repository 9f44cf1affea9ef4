"""The tools on adapter files at FLUX.1's size: seconds and memory of convert, resize, merge and extract, each in a process of
its own, imports included.

`python -m benchmarks.lora_tools --json` makes two random LoRAs (rank 16 on `all+ffs`, bf16, the k-th rank weighing 1/k) and a
base of a few blocks in their full width with something trained into it. `--double` and `--single` say how many blocks; extract
takes as long for each. The memory is the most that was resident, pages of the files that are read included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from trainer_core.adapter.lora_file import key_stem
from trainer_core.adapter.targets import target_modules
from trainer_core.flux.load import FluxShape, empty_transformer

from .random_flux import FULL, original_shapes, write_random

RANK, TRAINED_RANK = 16, 8
SPREAD = 0.02  # standard deviation of what is trained into the base: its weights' own


def write_lora(path: Path, seed: int, shape: FluxShape = FULL) -> None:
    """A random LoRA on all layers of `all+ffs`."""
    random, model, tensors = torch.Generator().manual_seed(seed), empty_transformer(shape), {}
    weights = 1 / torch.arange(1, RANK + 1)
    for name in target_modules(model, "all+ffs"):
        layer, stem = model.get_submodule(name), key_stem("lora", name)
        tensors[f"{stem}.lora_A.weight"] = torch.randn(RANK, layer.in_features, generator=random).bfloat16()
        tensors[f"{stem}.lora_B.weight"] = (torch.randn(layer.out_features, RANK, generator=random) * weights).bfloat16()
        tensors[f"{stem}.alpha"] = torch.tensor(float(RANK))
    save_file(tensors, path)


def write_tuned(path: Path, base: Path) -> None:
    """The base with a change of few ranks in each of its matrices."""
    random, tensors = torch.Generator().manual_seed(0), load_file(base)
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            up, down = torch.randn(len(tensor), TRAINED_RANK, generator=random), torch.randn(TRAINED_RANK, tensor.shape[1])
            tensors[name] = (tensor.float() + SPREAD / TRAINED_RANK * (up @ down)).bfloat16()
    save_file(tensors, path)


def make_files(place: Path, shape: FluxShape) -> None:
    """one, other: LoRAs; base, tuned: models of this shape."""
    for seed, name in enumerate(("one", "other")):
        write_lora(place / f"{name}.safetensors", seed)
    write_random(place / "base.safetensors", original_shapes(shape))
    write_tuned(place / "tuned.safetensors", place / "base.safetensors")


def measured(*words: object) -> dict[str, Any]:
    """Seconds and peak memory of one `flux-lora` command, and what it says of the file that it made."""
    command, began = [sys.executable, "-m", "trainer_core", *map(str, words), "--json"], time.monotonic()
    with tempfile.TemporaryFile("w+") as told:
        child = subprocess.Popen(command, stdout=told)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - began
        assert os.waitstatus_to_exitcode(status) == 0, command
        told.seek(0)
        report = json.loads(told.read().strip().splitlines()[-1])
    made = {name: report[name] for name in ("layers", "ranks", "difference")}
    size = Path(report["path"]).stat().st_size
    processor = round(usage.ru_utime + usage.ru_stime, 1)
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": processor,
        "peak_bytes": usage.ru_maxrss * 1024,
        "file_bytes": size,
        **made,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--double", type=int, default=1)
    parser.add_argument("--single", type=int, default=1)
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="only make the files there")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.make:
        return make_files(arguments.make, replace(FULL, num_double=arguments.double, num_single=arguments.single))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        one, other, base, tuned = (place / f"{name}.safetensors" for name in ("one", "other", "base", "tuned"))
        size = ["--double", str(arguments.double), "--single", str(arguments.single)]
        # in another process: the kernel counts what this one holds as its children's, until they have begun
        subprocess.run([sys.executable, "-m", "benchmarks.lora_tools", "--make", folder, *size], check=True)
        commands: dict[str, tuple[object, ...]] = {
            "convert to kohya": ("convert", one, "--to", "kohya"),
            "convert to diffusion_model": ("convert", one, "--to", "diffusion_model"),
            "resize to rank 8": ("resize", one, "--rank", RANK // 2),
            "resize to 0.9 of the energy": ("resize", one, "--energy", 0.9),
            "merge exactly": ("merge", one, other, "--weights", "1,0.6"),
            "merge to rank 16": ("merge", one, other, "--weights", "1,0.6", "--rank", RANK),
            "extract to rank 16": ("extract", tuned, base, "--rank", RANK),
        }
        report: dict[str, Any] = {"lora_bytes": one.stat().st_size, "base_bytes": base.stat().st_size}
        for name, words in commands.items():
            out = place / "made.safetensors"
            out.unlink(missing_ok=True)
            report[name] = measured(*words, "--out", out)
            print(name, report[name], file=sys.stderr, flush=True)
    print(json.dumps(report) if arguments.json else "\n".join(f"{name}: {value}" for name, value in report.items()))


if __name__ == "__main__":
    main()
