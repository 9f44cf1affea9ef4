"""What the weights of a model will take, counted layer by layer from headers, in the bytes that their precision gives them.

On the CPU a weight that stays as it is in the file is a view of it: `mapped`, which the system can drop and read again. One
that changes its format or place, or is put together from parts, is the process's own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from ..flux.fill import nothing
from ..flux.load import FluxShape, empty_transformer, open_weights
from ..flux.modulation import is_modulation
from ..flux.offload import waiting_layers
from ..flux.quantize import METHODS, UNQUANTISED, make_quantiser
from ..setup import Setup

QUANTISING = 5.0  # quantising a layer takes so many times its bytes in the file: float32 copies and masks, measured on the CPU
IN_FILES = {torch.bfloat16: "BF16", torch.float32: "F32"}  # how safetensors calls the formats that a base may have


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's weights as they are kept: our own, and those that are of the file. `loading` is what a layer takes
    while it is read and quantised, `in_products` one brought back to floating numbers."""

    own: int = 0
    mapped: int = 0
    loading: int = 0
    in_products: int = 0


@dataclass(frozen=True)
class BaseWeights:
    """The frozen transformer: where the work is, visiting blocks included, and what rests in host memory."""

    here: Weights
    on_host: Weights


def base_weights(setup: Setup) -> BaseWeights:
    """Blocks that wait visit two at a time. Modulation on the host is not quantised."""
    base = setup.job.base
    is_card = setup.device.type != "cpu"
    return _base_weights(
        setup.shape,
        base.base_model_precision,
        setup.dtype,
        base.blocks_to_swap if is_card else 0,
        setup.modulation_on_host,
        is_card,
        _formats_in_file(setup.files.transformer),
    )


@lru_cache(maxsize=64)
def _base_weights(
    shape: FluxShape,
    precision: str,
    dtype: torch.dtype,
    num_waiting: int,
    modulation_on_host: bool,
    is_card: bool,
    formats: "Formats",
) -> BaseWeights:
    model = _layers(shape)
    waits = waiting_layers(shape, num_waiting)
    rests = is_modulation if modulation_on_host else nothing
    of_file = formats.by_name
    resting = kept_weights(model, "no_change", (), dtype, rests, of_file)
    waiting = kept_weights(model, precision, UNQUANTISED, dtype, lambda name: waits(name) and not rests(name), of_file)
    working = kept_weights(model, precision, UNQUANTISED, dtype, lambda name: not waits(name) and not rests(name), of_file)
    visiting = 2 * (waiting.own + waiting.mapped) // max(1, num_waiting)
    loading, in_products = max(working.loading, waiting.loading), max(working.in_products, waiting.in_products)
    # on a card nothing is a view of the file; what waits beside one is pinned, and so our own
    own, mapped = (working.own + working.mapped, 0) if is_card else (working.own, working.mapped)
    return BaseWeights(
        Weights(own + visiting, mapped, loading, in_products),
        Weights(resting.own + waiting.own + waiting.mapped, resting.mapped),
    )


_layers = lru_cache(maxsize=2)(empty_transformer)  # to be looked at: whoever tries settings asks again and again


def kept_weights(
    model: nn.Module,
    precision: str,
    unquantised: tuple[str, ...],
    dtype: torch.dtype,
    counts: Callable[[str], bool] = lambda name: True,
    formats: Mapping[str, str] | None = None,
) -> Weights:
    """What the layers that count, of a model on the meta device, take once they are loaded on the CPU. `formats` are those that
    the file has; without them nothing is mapped."""
    quantiser, own, mapped, loading, in_products = make_quantiser(precision, torch.device("cpu"), unquantised), 0.0, 0, 0, 0
    met: set[int] = set()  # T5's embedding has two names
    for name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False) if counts(name) else ():
            if id(parameter) in met:
                continue
            met.add(id(parameter))
            whole = parameter.numel() * dtype.itemsize
            if quantiser is not None and leaf == "weight" and quantiser.takes(name, module):
                own += parameter.numel() * METHODS[precision].bytes_per_weight
                loading, in_products = max(loading, int(QUANTISING * whole)), max(in_products, whole)
            elif formats and formats.get(f"{name}.{leaf}") == IN_FILES[dtype]:
                mapped, loading = mapped + whole, max(loading, whole)
            else:
                own, loading = own + whole, max(loading, whole)
    return Weights(int(own), mapped, loading, in_products)


@dataclass(frozen=True, eq=False)
class Formats:
    """The format of each weight that is a view of its file, by diffusers' names."""

    by_name: Mapping[str, str]


def _formats_in_file(path: Path) -> Formats:
    stat = path.stat()
    return _read_formats(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _read_formats(path: Path, size: int, modified: int) -> Formats:
    if path.suffix.lower() == ".gguf":  # its reader copies
        return Formats({})
    weights = open_weights(path)
    entries, whole = weights.source.entries, {name: p for name, p in weights.places.items() if not p.swapped_halves}
    return Formats({name: entries[place.original].dtype for name, place in whole.items()})
