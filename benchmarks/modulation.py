"""What the modulation costs on the host: python -m benchmarks.modulation --file FILE [--small] [--json]

Milliseconds a pass, for FLUX.1's full size (6.5 GB of bf16 in a file of random weights, mapped), when the vectors of 1, 8 or 32
passes are computed at once, batch 1. A card waits for none of it if a step takes longer.
`--small` takes a model of a hundredth of the size, only to see that it runs.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from trainer_core.flux.load import empty_transformer, open_weights
from trainer_core.flux.modulation import LAYERS, HostLinear

from .random_flux import FULL, SMALL, original_shapes, write_random

CPU = torch.device("cpu")
AT_ONCE = (1, 8, 32)
ROUNDS = 5


def modulation_layers(path: Path) -> list[HostLinear]:
    """All modulation layers of the file but the embedder's, their weights mapped."""
    weights, layers = open_weights(path), []
    for name, module in empty_transformer(weights.shape).named_modules():
        if name.endswith(LAYERS):
            for part in ("weight", "bias"):
                module.register_parameter(part, torch.nn.Parameter(weights.read(f"{name}.{part}"), requires_grad=False))
            layers.append(HostLinear(module, CPU))
    return layers


@torch.no_grad()
def milliseconds(layers: list[HostLinear], at_once: int, width: int) -> float:
    """Median of a few rounds, a pass; the first, which reads the file, is not counted."""
    times = []
    for number in range(1 + ROUNDS):
        vectors = torch.randn(at_once, width, generator=torch.Generator().manual_seed(number)).bfloat16()
        began = time.perf_counter()
        for layer in layers:
            layer.learn(vectors, "training")
        times.append(time.perf_counter() - began)
    return round(1000 * statistics.median(times[1:]) / at_once, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True, help="where the random weights are, or will be (23.8 GB)")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    shape = SMALL if arguments.small else FULL
    write_random(arguments.file, original_shapes(shape))
    layers = modulation_layers(arguments.file)
    report = {str(at_once): milliseconds(layers, at_once, shape.width) for at_once in AT_ONCE}
    if arguments.json:
        print(json.dumps({"milliseconds_per_pass": report}))
    else:
        print("\n".join(f"{name} at once: {value} ms a pass" for name, value in report.items()))


if __name__ == "__main__":
    main()
