"""Model files of FLUX.1's size with random weights, for what does not depend on what the weights are: memory and time.

`python -m benchmarks.random_flux FILE [--double 19] [--single 38]` writes a transformer in the original (BFL) naming, bf16,
23.8 GB at full size; with `--t5` a T5 v1.1 XXL encoder (9.5 GB). Written as a stream, so it needs no memory; the numbers come
out of one block of normal ones, read from another place for each tensor.
"""

import argparse
import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import torch
from transformers import T5Config, T5EncoderModel

from trainer_core.flux.load import FluxShape, empty_transformer
from trainer_core.flux.names import places
from trainer_core.flux.text import T5_V1_1_XXL

FULL = FluxShape(num_double=19, num_single=38, width=3072, in_channels=64, t5_width=4096, clip_width=768, guidance=True)
SMALL = replace(FULL, num_double=1, num_single=1, width=256, t5_width=128)  # only to see that something runs
SMALL_T5 = {"num_layers": 2, "d_model": 128, "d_ff": 256, "num_heads": 2}
WIDTHS = {"BF16": 2, "F32": 4}  # bytes a number
BLOCK = 1 << 26  # numbers
SPREAD = 0.02  # standard deviation


def original_shapes(shape: FluxShape) -> dict[str, tuple[int, ...]]:
    """Every tensor of the original naming with its size."""
    sizes = {name: tuple(tensor.shape) for name, tensor in empty_transformer(shape).state_dict().items()}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, place in places(shape.num_double, shape.num_single, shape.guidance, shape.width).items():
        rows = place.rows[1] if place.rows else sizes[name][0]
        known = shapes.get(place.original, (0,))[0]
        shapes[place.original] = (max(rows, known), *sizes[name][1:])
    return shapes


def t5_shapes(*, is_small: bool = False) -> dict[str, tuple[int, ...]]:
    """Every tensor of the T5 XXL encoder, or of a small one."""
    with torch.device("meta"):
        model = T5EncoderModel(T5Config(**T5_V1_1_XXL | (SMALL_T5 if is_small else {})))
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {name: size for name, size in state.items() if name != "encoder.embed_tokens.weight"}


def write_hollow(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> None:
    """A safetensors file with a hole where the numbers would be: enough for whatever only looks at the header."""
    header, end = _header(shapes, dtype)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + end)


def write_random(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A bf16 safetensors file of these tensors; left alone if it is there in full."""
    header, end = _header(shapes, "BF16")
    if path.exists() and path.stat().st_size == len(header) + end:
        return
    numbers = SPREAD * torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))
    block = memoryview(numbers.bfloat16().view(torch.uint8).numpy())
    with path.open("wb") as file:
        file.write(header)
        for number, size in enumerate(shapes.values()):
            left, start = 2 * prod(size), 2 * (number * 7919 % (BLOCK // 2))
            while left:
                chunk = block[start : start + left]
                file.write(chunk)
                left, start = left - len(chunk), 0


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> tuple[bytes, int]:
    """The beginning of a safetensors file of these tensors, and how many bytes of numbers follow."""
    header, end = {}, 0
    for name, size in shapes.items():
        header[name] = {"dtype": dtype, "shape": list(size), "data_offsets": [end, end + WIDTHS[dtype] * prod(size)]}
        end += WIDTHS[dtype] * prod(size)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--double", type=int, default=FULL.num_double)
    parser.add_argument("--single", type=int, default=FULL.num_single)
    parser.add_argument("--t5", action="store_true")
    arguments = parser.parse_args()
    shape = FluxShape(**{**vars(FULL), "num_double": arguments.double, "num_single": arguments.single})
    write_random(arguments.file, t5_shapes() if arguments.t5 else original_shapes(shape))


if __name__ == "__main__":
    main()
