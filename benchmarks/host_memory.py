"""Host memory while FLUX is loaded and quantised on the CPU: python -m benchmarks.host_memory --precision nf4-bnb --json

Writes a file with random weights of the wanted number of blocks (19 and 38 are FLUX.1: 23.8 GB on disk) unless it is there,
then loads it as a run does. Bars at full size: 9 GiB for nf4-bnb, 15 GiB for int8-quanto.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trainer_core.flux.load import load_transformer, open_weights
from trainer_core.flux.quantize import make_quantiser, stored_bytes

from .memory import anonymous_bytes, watched
from .random_flux import FULL, original_shapes, write_random

CPU = torch.device("cpu")


def load(path: Path, precision: str) -> tuple[dict[str, Any], torch.nn.Module]:
    """Load and quantise; what it took, and the transformer."""
    before = anonymous_bytes()
    with watched() as seen:
        transformer = load_transformer(open_weights(path), torch.bfloat16, CPU, make_quantiser(precision, CPU))
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    whole = [2 * sum(tensor.numel() for tensor in block.parameters()) for block in blocks_in_file(path)]
    return {
        "before_bytes": before,
        **seen,
        "quantised_bytes": stored_bytes(transformer),
        "largest_block_bytes": max(map(stored_bytes, blocks)),
        "largest_block_in_file_bytes": max(whole),
    }, transformer


def blocks_in_file(path: Path) -> list[torch.nn.Module]:
    from trainer_core.flux.load import empty_transformer

    model = empty_transformer(open_weights(path).shape)
    return [*model.transformer_blocks, *model.single_transformer_blocks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--double", type=int, default=FULL.num_double)
    parser.add_argument("--single", type=int, default=FULL.num_single)
    parser.add_argument("--precision", default="nf4-bnb")
    parser.add_argument("--file", type=Path, help="where the random weights are, or will be; else in a temporary folder")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.file or Path(folder) / "flux.safetensors"
        write_random(path, original_shapes(replace(FULL, num_double=arguments.double, num_single=arguments.single)))
        report, _ = load(path, arguments.precision)
    report = {"precision": arguments.precision, "blocks": [arguments.double, arguments.single], **report}
    print(json.dumps(report) if arguments.json else "\n".join(f"{name}: {value}" for name, value in report.items()))


if __name__ == "__main__":
    main()
