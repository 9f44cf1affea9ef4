"""Card memory and time of a training step at FLUX.1's size: python -m benchmarks.gpu --json

Rank 16, target all+ffs, batch 1, gradient checkpointing, each precision at 512 and 1024 px, and int8 with blocks that wait on
the host; random weights, since neither memory nor time depends on what they are. Each row has the most that torch had allocated
and reserved, the plan's figure, and the median seconds of a step. Bars at 512 px: 20, 11.5, 7.5, 6.5, 5 GB, and 5 GB for int8
with waiting blocks at under twice the step's time.

Without a card it runs a reduced model on the CPU, to show that it runs, and says so: those rows fill no table.
"""

import argparse
import gc
import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer_core.adapter.build import add_adapter
from trainer_core.flux.load import FluxShape, empty_transformer, load_transformer
from trainer_core.flux.modulation import Conditions, is_modulation, keep_on_host, look_ahead
from trainer_core.flux.offload import let_blocks_wait, waiting_layers
from trainer_core.flux.predict import predict_velocity
from trainer_core.flux.quantize import make_quantiser
from trainer_core.flux.recompute import recompute_blocks
from trainer_core.optimizers import make_optimizer
from trainer_core.plan.phases import CARD_FLOOR, transformer_phases
from trainer_core.setup import Setup

from .host_memory import make_setup_of
from .random_flux import BLOCK, FULL, SPREAD

STEPS = 5  # after one that warms up
SMALL = replace(FULL, num_double=1, num_single=1, width=256, t5_width=128)
BARS_GB = {"no_change": 20.0, "int8-quanto": 11.5, "int4-quanto": 7.5, "nf4-bnb": 6.5, "int2-quanto": 5.0}
ROWS = [(precision, pixels, 0) for precision in BARS_GB for pixels in (512, 1024)]
ROWS += [("int8-quanto", 512, 20), ("int8-quanto", 512, 40), ("nf4-bnb", 512, 40)]


@dataclass(frozen=True)
class RandomWeights:
    """Stands for a model file: tensors cut out of one block of normal numbers."""

    shape: FluxShape
    block: Tensor

    def read(self, name: str) -> Tensor:
        size = self._sizes()[name]
        return self.block[: size.numel()].view(size)

    def _sizes(self) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in empty_transformer(self.shape).named_parameters()}


def measure(setup: Setup, weights: RandomWeights) -> dict[str, Any]:
    """Load, and train a few steps."""
    device, base, one = setup.device, setup.job.base, setup.samples[0].bucket
    is_card = device.type == "cuda"
    on_host = is_modulation if setup.modulation_on_host else (lambda name: False)
    waits = waiting_layers(setup.shape, base.blocks_to_swap)
    quantiser = make_quantiser(base.base_model_precision, device)
    transformer = load_transformer(weights, setup.dtype, device, quantiser, on_host, waits)
    if setup.modulation_on_host:
        keep_on_host(transformer, device)
    parameters = list(add_adapter(transformer, setup.adapter, seed=0).values())
    recompute_blocks(transformer, 1)
    if base.blocks_to_swap:
        let_blocks_wait(transformer, base.blocks_to_swap, device)
    optimizer = make_optimizer(setup.job.optimizer, parameters, 0)
    transformer.train()
    if is_card:
        torch.cuda.reset_peak_memory_stats(device)
    passes = [
        Conditions(torch.tensor([0.1 + 0.1 * step]), torch.ones(1), torch.randn(1, setup.shape.clip_width))
        for step in range(1 + STEPS)
    ]
    look_ahead(transformer, passes, "training")
    x = torch.randn(1, 16, one.height // 8, one.width // 8)
    text = torch.randn(1, setup.flavour.t5_max_length, setup.shape.t5_width)
    times = []
    for sigma, guidance, pooled in passes:
        began = time.perf_counter()
        predict_velocity(transformer, x, sigma, text, pooled, guidance).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(parameters[0].sum())  # waits for the card
        times.append(time.perf_counter() - began)
    report: dict[str, Any] = {"seconds_per_step": round(statistics.median(times[1:]), 3)}
    if is_card:
        plan = next(phase for phase in transformer_phases(setup) if phase.name == "train")
        report["allocated_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
        report["reserved_gb"] = round(torch.cuda.max_memory_reserved(device) / 1e9, 2)
        report["planned_gb"] = round((plan.card - CARD_FLOOR["cuda"]) / 1e9, 2)
    return report


def rows(device: torch.device) -> list[dict[str, Any]]:
    """All rows; on the CPU two of a reduced model."""
    is_card = device.type == "cuda"
    shape = FULL if is_card else SMALL
    block = SPREAD * torch.randn(BLOCK if is_card else 1 << 22, generator=torch.Generator().manual_seed(0))
    weights = RandomWeights(shape, block.bfloat16())
    found = []
    for precision, pixels, count in ROWS if is_card else [("no_change", 64, 0), ("int8-quanto", 64, 2)]:
        setup = make_setup_of(shape, Path("random"), precision, pixels, device=device, blocks_to_swap=count)
        found.append({"precision": precision, "pixels": pixels, "blocks_to_swap": count, **measure(setup, weights)})
        gc.collect()
        if is_card:
            torch.cuda.empty_cache()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no card: a reduced model on the CPU, for no table"
    report = {"device": name, "torch": torch.__version__, "rows": rows(device)}
    if arguments.json:
        print(json.dumps(report))
        return
    print(name)
    for row in report["rows"]:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
