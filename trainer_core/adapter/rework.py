"""The tools on adapter files: convert, resize, merge, and extract a LoRA from two models. Each reads a layer at a time.

Every tool makes its tensors in the format of the file, and the file is then read back as a stranger's would be: its change of
weight is compared, layer by layer, with the one that was meant. So what a tool says it lost is measured on what lies on the
disk: 0 for another naming, rounding for an exact merge, and the share that fewer ranks cost. No forward pass is needed for
that, since a layer's output is its weight times its input. Memory: three times the new file as it is written, and one layer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import JobError
from ..flux.load import FluxShape, FluxWeights, open_weights
from ..flux.names import Name, linear_names
from .dialects import AdapterSource, open_adapter
from .file_factors import Factors, LohaFactors, LokrFactors, LoraFactors
from .file_metadata import carried_over, extracted_metadata, merged_metadata
from .lora_file import write_lora
from .low_rank import Singular, Wanted, as_product, decompose, is_thin, of_matrix, of_product
from .namings import DIFFUSERS, layers_in, named

FORMATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

Term = tuple[float, Factors]  # a weight, and what it is the weight of


class Reworked(NamedTuple):
    """A file that a tool has made. `difference` is the norm of what differs from what was meant, relative to its norm, over all
    layers; `worst` the layer where that is largest."""

    path: Path
    kind: str
    layers: int
    ranks: list[int]
    parameters: int
    difference: float
    worst: tuple[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Output:
    """Where the new file goes, and in which format of numbers (None: that of what it is made from)."""

    path: Path
    dtype: torch.dtype | None = None


def convert(source: AdapterSource, naming: str, output: Output) -> Reworked:
    """The same adapter under other names. JobError for a lokr that cannot be said in them."""
    dtype = output.dtype or _dtype([source])
    tensors: dict[str, Tensor] = {}
    for layer, factors in layers_in(source, naming):
        tensors |= named(layer, factors, naming, dtype)
    write_lora(output.path, tensors, carried_over(source, naming, {"tool": "convert", "to": naming}))
    return _compared(output.path, source.shape, {module: [(1.0, source)] for module in source.places})


def resize(source: AdapterSource, wanted: Wanted, output: Output) -> Reworked:
    """A LoRA of fewer ranks with as much of the change as they can hold; a lokr or loha becomes one. In diffusers' naming."""
    dtype = output.dtype or _dtype([source])
    tensors: dict[str, Tensor] = {}
    for module in source.places:
        _add(tensors, module, decompose(source.read(module), wanted), dtype)
    said = f"resized to rank {wanted.rank}" if wanted.share >= 1 else f"resized to {wanted.share:.4g} of its energy"
    note = {"tool": "resize", "rank": wanted.rank, "share": wanted.share}
    _write(output.path, tensors, carried_over(source, DIFFUSERS, note, said))
    return _compared(output.path, source.shape, {module: [(1.0, source)] for module in source.places})


def merge(sources: Sequence[AdapterSource], weights: Sequence[float], wanted: Wanted | None, output: Output) -> Reworked:
    """The weighted sum of several as one LoRA: exact, its rank the sum of theirs (`wanted` None), or the best of a rank."""
    dtype = output.dtype or _dtype(sources)
    given = [(weight, source) for weight, source in zip(weights, sources, strict=True) if weight]
    if not given:
        raise JobError("merge: every weight is 0, so nothing is left; give the LoRAs weights")
    order = [name.diffusers for name in _linears(sources[0].shape)]
    meant = {module: [term for term in given if module in term[1].places] for module in order}
    tensors: dict[str, Tensor] = {}
    for module, terms in meant.items():
        if not terms:
            continue
        read = [(weight, source.read(module)) for weight, source in terms]
        if wanted is None:
            tensors |= named(module, _stacked(read, terms), DIFFUSERS, dtype)
        else:
            _add(tensors, module, _summed(read, wanted), dtype)
    used = [f"{weight:g} of {source.path.stem}" for weight, source in given]
    note = {"tool": "merge", "weights": list(weights), **({"rank": wanted.rank, "share": wanted.share} if wanted else {})}
    _write(output.path, tensors, merged_metadata(output.path, sources, note, f"merged: {', '.join(used)}"))
    return _compared(output.path, sources[0].shape, {module: terms for module, terms in meant.items() if terms})


def extract(tuned: Path, base: Path, wanted: Wanted, output: Output) -> Reworked:
    """What was trained into a whole model, as a LoRA: of each linear layer the best of a rank. Biases and norms stay behind."""
    after, before = open_weights(tuned), open_weights(base)
    if after.shape != before.shape:
        raise JobError(f"{tuned} and {base} are models of different sizes; give a model, and the one that it was trained from")
    dtype, tensors, norms, ranks = output.dtype or torch.bfloat16, {}, {}, set()
    for module in (name.diffusers for name in _linears(after.shape)):
        change = _change(after, before, f"{module}.weight")
        if change is None:
            continue
        lora = of_matrix(change, wanted).as_lora()
        made = named(module, lora, DIFFUSERS, dtype)
        up, down = (tensor.float() for tensor in list(made.values())[1::-1])
        norms[module] = (change - up @ down).norm().item(), change.norm().item()
        tensors, ranks = tensors | made, ranks | {lora.rank}
    if not tensors:
        raise JobError(f"{tuned} and {base} have the same weights in all linear layers; there is nothing to extract")
    said = f"extracted from {tuned.stem} against {base.stem}"
    note = {"tool": "extract", "rank": wanted.rank, "share": wanted.share}
    metadata = extracted_metadata(output.path, after.shape, [tuned, base], note, said)
    _write(output.path, tensors, metadata)
    written = open_adapter(output.path, after.shape)
    assert written.places.keys() == norms.keys(), "the file just written is not read as it was meant"
    return _told(output.path, written, norms, ranks, _left_behind(after, before))


def _change(after: FluxWeights, before: FluxWeights, name: str) -> Tensor | None:
    """What was added to a tensor, in float32; None where nothing was."""
    change = after.read(name).float() - before.read(name).float()
    return change if change.any() else None


def _left_behind(after: FluxWeights, before: FluxWeights) -> tuple[str, ...]:
    """What a LoRA cannot hold: changes of biases and norms."""
    weights = {f"{name.diffusers}.weight" for name in _linears(after.shape)}
    others = [name for name in after.places if name not in weights and _change(after, before, name) is not None]
    if not others:
        return ()
    return (f"{len(others)} biases and norms differ, too, such as {others[0]}; a LoRA cannot hold them, they are left out",)


def _stacked(read: Sequence[Term], terms: Sequence[tuple[float, AdapterSource]]) -> LoraFactors:
    """The weighted sum exactly: the factors side by side. JobError for a lokr, which has no few ranks."""
    ups, downs = [], []
    for (weight, factors), (_, source) in zip(read, terms, strict=True):
        if isinstance(factors, LokrFactors):
            raise JobError(f"merge: {source.path} is a lokr, whose exact sum with others has no small rank; give --rank")
        assert isinstance(factors, LoraFactors | LohaFactors)
        up, down = as_product(factors)
        ups.append(weight * up)
        downs.append(down)
    up, down = torch.cat(ups, dim=1), torch.cat(downs)
    return LoraFactors(down, up, float(len(down)))


def _summed(read: Sequence[Term], wanted: Wanted) -> Singular:
    product = _product(read)
    return of_product(*product, wanted) if product else of_matrix(_whole(read), wanted)


def _product(terms: Sequence[Term]) -> tuple[Tensor, Tensor] | None:
    """The weighted sum as one product, where that is cheaper than the whole of it."""
    if not all(isinstance(factors, LoraFactors | LohaFactors) for _, factors in terms):
        return None
    pairs = [(weight, *as_product(factors)) for weight, factors in terms if isinstance(factors, LoraFactors | LohaFactors)]
    up, down = torch.cat([weight * up for weight, up, _ in pairs], dim=1), torch.cat([down for *_, down in pairs])
    return (up, down) if is_thin(up, down) else None


def _whole(terms: Sequence[Term]) -> Tensor:
    return sum((weight * factors.delta() for weight, factors in terms), torch.zeros(terms[0][1].size()))


def _norm(terms: Sequence[Term]) -> float:
    """The norm of the weighted sum; in double precision, since differences are what is asked for."""
    product = _product(terms)
    if product is None:
        return _whole(terms).norm().item()
    (_, upper), (_, lower) = (torch.linalg.qr(matrix.double()) for matrix in (product[0], product[1].T))
    return (upper @ lower.T).norm().item()


def _compared(path: Path, shape: FluxShape, meant: Mapping[str, Sequence[tuple[float, AdapterSource]]]) -> Reworked:
    """The file as it lies on the disk against the weighted sum that was meant, layer by layer."""
    written, norms, ranks = open_adapter(path, shape), {}, set()
    for module, terms in meant.items():
        read = [(weight, source.read(module)) for weight, source in terms]
        made = [(-1.0, written.read(module))] if module in written.places else []
        norms[module] = _norm([*read, *made]), _norm(read)
        ranks |= {factors.rank for _, factors in made if factors.rank}
    return _told(path, written, norms, ranks)


def _told(
    path: Path, written: AdapterSource, norms: Mapping[str, tuple[float, float]], ranks: set[int], notes: tuple[str, ...] = ()
) -> Reworked:
    """`norms` are, by layer, that of what differs and that of what was meant."""
    shares = {module: lost / energy if energy else 0.0 for module, (lost, energy) in norms.items()}
    worst = max(shares, key=lambda module: shares[module])
    lost, energy = (math.hypot(*column) for column in zip(*norms.values(), strict=True))
    difference = lost / energy if energy else 0.0
    sizes = len(written.places), sorted(ranks), written.num_parameters
    return Reworked(path, written.kind, *sizes, difference, (worst, shares[worst]), notes)


def _add(tensors: dict[str, Tensor], module: str, found: Singular, dtype: torch.dtype) -> None:
    """The layer, unless nothing of it is left."""
    if found.energy:
        tensors |= named(module, found.as_lora(), DIFFUSERS, dtype)


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    if not tensors:
        raise JobError(f"{path.name} would hold nothing: the change is zero in every layer")
    write_lora(path, tensors, metadata)


def _linears(shape: FluxShape) -> list[Name]:
    return linear_names(shape.num_double, shape.num_single, shape.guidance)


def _dtype(sources: Sequence[AdapterSource]) -> torch.dtype:
    """That of the sources where they have but one, else float32."""
    names = set().union(*(source.dtypes for source in sources))
    return FORMATS.get(next(iter(names)), torch.float32) if len(names) == 1 else torch.float32
