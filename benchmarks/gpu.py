"""Card memory and time of a training step at FLUX.1's size: python -m benchmarks.gpu [--speed] --json

Rank 16, target all+ffs, batch 1, gradient checkpointing, each precision at 512 and 1024 px, and int8 with blocks that wait on
the host; random weights, since neither memory nor time depends on what they are. Each row has the most that torch had allocated
and reserved, the plan's figure, and the median seconds of a step. Bars at 512 px: 20, 11.5, 7.5, 6.5, 5 GB, and 5 GB for int8
with waiting blocks at under twice the step's time.

`--speed` adds the table of speed: bf16, int8 and nf4 at 512, 768 and 1024 px, with and without TREAD (half of the image tokens,
layers 2 to -2) and torch.compile, and at 1024 px int8 and fp8 whose products are of 8 bits, too (`quantized_matmul`; bar: 1.4
times as fast as bf16). Each row has the seconds of a step, those of the first one, which compiles, the sampler's
steps a second and pictures of 20 steps a second; without TREAD also the operations a second of the step, as a share of what the
card reaches in a large product of bf16 matrices (bar at 1024 px: 0.5).

Without a card it runs a reduced model on the CPU, to show that it runs, and says so: those rows fill no table.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from trainer_core.flux.compiling import as_written, compile_blocks
from trainer_core.flux.load import FluxShape, empty_transformer
from trainer_core.flux.modulation import Conditions, look_ahead
from trainer_core.flux.predict import predict_velocity
from trainer_core.flux.routing import TokenRouter
from trainer_core.optimizers import make_optimizer
from trainer_core.plan.activations import training_growth
from trainer_core.plan.phases import CARD_FLOOR, largest_pass, transformer_phases
from trainer_core.setup import Setup
from trainer_core.specs.base import EIGHT_BIT_KEPT
from trainer_core.trainee import load_base, make_trainable
from trainer_core.tread import Span, draw_routes

from .host_memory import make_setup
from .random_flux import BLOCK, FULL, SMALL, SPREAD, original_shapes, write_hollow

STEPS = 5  # after one that warms up
BARS_GB = {"no_change": 20.0, "int8-quanto": 11.5, "int4-quanto": 7.5, "nf4-bnb": 6.5, "int2-quanto": 5.0}
ROWS = [(precision, pixels, 0) for precision in BARS_GB for pixels in (512, 1024)]
SPEED = list(product(("no_change", "int8-quanto", "nf4-bnb"), (512, 768, 1024), (0.0, 0.5), (False, True)))
SPEED += product(EIGHT_BIT_KEPT, (1024,), (0.0,), (False, True))
SAMPLER_STEPS = 20
MATRIX_EDGE = {"cuda": 8192, "cpu": 512}
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


def measure(setup: Setup, weights: RandomWeights, *, with_speed: bool = False) -> dict[str, Any]:
    """Load, and train a few steps; for the table of speed, sample as well."""
    device, one = setup.device, setup.samples[0].bucket
    is_card = device.type == "cuda"
    transformer = load_base(setup, weights)
    parameters = list(make_trainable(setup, transformer, weights).values())
    optimizer, router = make_optimizer(setup.job.optimizer, parameters, 0), TokenRouter(transformer, setup.spans)
    if setup.compiles:
        compile_blocks(transformer, setup.spans)
    transformer.train()
    if is_card:
        torch.cuda.reset_peak_memory_stats(device)
    passes = [
        Conditions(torch.tensor([0.1 + 0.1 * step]), torch.ones(1), torch.randn(1, setup.shape.clip_width))
        for step in range(1 + (STEPS if is_card else 1))
    ]
    look_ahead(transformer, passes, "training")
    x = torch.randn(1, 16, one.height // 8, one.width // 8)
    text = torch.randn(1, setup.flavour.t5_max_length, setup.shape.t5_width)
    times, num_tokens = [], one.width * one.height // 256
    for number, (sigma, guidance, pooled) in enumerate(passes):
        began = time.perf_counter()
        with router.routed(draw_routes(setup.spans, num_tokens, None, 0, number, range(1))):
            loss = predict_velocity(transformer, x, sigma, text, pooled, guidance).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(parameters[0].sum())  # waits for the card
        times.append(time.perf_counter() - began)
    report: dict[str, Any] = {"seconds_per_step": round(statistics.median(times[1:]), 3)}
    if is_card:
        report["allocated_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
        report["reserved_gb"] = round(torch.cuda.max_memory_reserved(device) / 1e9, 2)
        report["planned_gb"] = planned_gb(setup)
    if not with_speed:
        return report
    report["seconds_of_first_step"] = round(times[0], 1)
    if not setup.spans:
        growth = training_growth(setup.shape, setup.job.lora, setup.dtype, largest_pass(setup), checkpointing=True)
        operations = growth.flops(setup.shape.num_double, setup.shape.num_single)
        rate = operations / statistics.median(times[1:])
        report |= {"tflops": round(rate / 1e12, 2), "share_of_matrix_rate": round(rate / matrix_rate(device), 3)}
    transformer.eval()
    with torch.no_grad(), as_written(compiled=setup.compiles):
        times = [sampling_seconds(transformer, x, text, one_pass) for one_pass in passes]
    report["sampler_steps_per_second"] = round(1 / statistics.median(times[1:]), 2)
    report["pictures_per_minute"] = round(60 / SAMPLER_STEPS / statistics.median(times[1:]), 2)
    return report


def sampling_seconds(transformer: FluxTransformer2DModel, x: Tensor, text: Tensor, one: Conditions) -> float:
    """One step of the sampler."""
    began = time.perf_counter()
    float(predict_velocity(transformer, x, one.sigma_B, text, one.pooled_BP, one.guidance_B).sum())  # waits for the card
    return time.perf_counter() - began


def made_up_model(device: torch.device, folder: Path) -> tuple[Path, RandomWeights]:
    """FLUX.1's size for a card, a reduced one for the CPU: a file of its shapes without content, and numbers for it."""
    is_card = device.type == "cuda"
    shape, path = FULL if is_card else SMALL, folder / "hollow.safetensors"
    write_hollow(path, original_shapes(shape))
    block = SPREAD * torch.randn(BLOCK if is_card else 1 << 22, generator=torch.Generator().manual_seed(0))
    return path, RandomWeights(shape, block.bfloat16())


@lru_cache(maxsize=1)
def matrix_rate(device: torch.device) -> float:
    """Operations a second in the largest of products that fits easily, in bf16."""
    edge = MATRIX_EDGE[device.type]
    one = torch.randn(edge, edge, device=device, dtype=torch.bfloat16)
    times = []
    for _ in range(1 + STEPS):
        began = time.perf_counter()
        float((one @ one)[0, 0])
        times.append(time.perf_counter() - began)
    return 2 * edge**3 / min(times[1:])


def speed_rows(device: torch.device, folder: Path) -> list[dict[str, Any]]:
    """The table of speed; on the CPU three rows of a reduced model."""
    is_card = device.type == "cuda"
    path, weights = made_up_model(device, folder)
    small = [("no_change", 64, 0.0, False), ("no_change", 64, 0.5, False), ("int8-torchao", 64, 0.0, False)]
    cases = SPEED if is_card else small
    last, found = weights.shape.num_double + weights.shape.num_single - 2, []
    for precision, pixels, tread, is_compiled in cases:
        setup = make_setup(path, precision, pixels, device=device)
        training = setup.job.training.model_copy(update={"torch_compile": "on" if is_compiled else "off"})
        spans = (Span(tread, 2, last) if is_card else Span(tread, 0, 1),) if tread else ()
        base = setup.job.base.model_copy(update={"quantized_matmul": precision in EIGHT_BIT_KEPT})
        setup = replace(setup, job=setup.job.model_copy(update={"training": training, "base": base}), spans=spans)
        named = {"precision": precision, "pixels": pixels, "tread": tread, "compiled": is_compiled}
        found.append({**named, **measure(setup, weights, with_speed=True)})
        gc.collect()
        if is_card:
            torch.cuda.empty_cache()
    return found


def planned_gb(setup: Setup) -> float:
    """What the plan says that torch will have allocated at the peak of a step."""
    plan = next(phase for phase in transformer_phases(setup) if phase.name == "train")
    return round((plan.card - CARD_FLOOR["cuda"]) / 1e9, 2)


def planned_rows(folder: Path) -> list[dict[str, Any]]:
    """The plan's figure for every row, for a card that need not be there."""
    path, card = folder / "full.safetensors", torch.device("cuda")
    write_hollow(path, original_shapes(FULL))
    return [
        {"precision": precision, "pixels": pixels, "blocks_to_swap": count, "planned_gb": planned_gb(setup)}
        for precision, pixels, count in ROWS
        for setup in [make_setup(path, precision, pixels, device=card, blocks_to_swap=count)]
    ]


def rows(device: torch.device, folder: Path) -> list[dict[str, Any]]:
    """All rows; on the CPU two of a reduced model."""
    is_card = device.type == "cuda"
    path, weights = made_up_model(device, folder)
    found = []
    for precision, pixels, count in ROWS if is_card else [("no_change", 64, 0), ("int8-quanto", 64, 2)]:
        setup = make_setup(path, precision, pixels, device=device, blocks_to_swap=count)
        found.append({"precision": precision, "pixels": pixels, "blocks_to_swap": count, **measure(setup, weights)})
        gc.collect()
        if is_card:
            torch.cuda.empty_cache()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plan", action="store_true", help="only what the plan says of every row, for a card that need not be there"
    )
    parser.add_argument("--speed", action="store_true", help="the table of speed, too")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no card: a reduced model on the CPU, for no table"
    with tempfile.TemporaryDirectory() as folder:
        found = planned_rows(Path(folder)) if arguments.plan else rows(device, Path(folder))
        speed = speed_rows(device, Path(folder)) if arguments.speed else []
    report = {"device": "any: this is the plan" if arguments.plan else name, "torch": torch.__version__}
    report |= {"rows": found, "speed": speed}
    if arguments.json:
        print(json.dumps(report))
        return
    print(report["device"])
    for row in [*found, *speed]:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
