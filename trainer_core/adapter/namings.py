"""An adapter under the names that other programs use: the same change of weight, the same kind, other keys.

    diffusers        transformer.LAYER.lora_A.weight, lycoris_LAYER_.lokr_w1 ..   as this trainer writes it
    kohya            lora_unet_LAYER_.lora_down.weight                            the original's layers, with _ for .
    diffusion_model  diffusion_model.LAYER.lora_A.weight                          the original's layers, as ComfyUI names them

The original keeps several of diffusers' layers in one matrix. Their adapters become one by rows: those that share a factor,
as they do where such a file was taken apart, are put on top of each other; otherwise lora and loha stand in blocks, and the
rank is the sum of the ranks. A layer without an adapter counts as one that changes nothing. A lokr goes only where factors
are shared, since a Kronecker product has no blocks; that is refused with what to do instead.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import JobError
from ..flux.load import FluxShape
from ..flux.names import SWAPPED_HALVES, Name, linear_names
from .dialects import AdapterSource
from .file_factors import Factors, LohaFactors, LokrFactors, LoraFactors
from .lora_file import ALPHA, key_stem

DIFFUSERS, KOHYA, DIFFUSION_MODEL = "diffusers", "kohya", "diffusion_model"
FORMATS = (DIFFUSERS, KOHYA, DIFFUSION_MODEL)

_SUFFIXES = {
    DIFFUSERS: {"down": ".lora_A.weight", "up": ".lora_B.weight"},
    KOHYA: {"down": ".lora_down.weight", "up": ".lora_up.weight"},
    DIFFUSION_MODEL: {"down": ".lora_A.weight", "up": ".lora_B.weight"},
}
_STEMS: dict[str, Callable[[str, str], str]] = {
    DIFFUSERS: key_stem,
    KOHYA: lambda kind, layer: f"lora_unet_{layer.replace('.', '_')}",
    DIFFUSION_MODEL: lambda kind, layer: f"diffusion_model.{layer}",
}


def layers_in(source: AdapterSource, naming: str) -> Iterator[tuple[str, Factors]]:
    """The adapter's layers as that naming has them, one at a time: their names and factors."""
    shape = source.shape
    if naming == DIFFUSERS:
        yield from ((module, source.read(module)) for module in source.places)
        return
    for layer, names in original_layers(shape).items():
        found = {name.diffusers: source.read(name.diffusers) for name in names if name.diffusers in source.places}
        if found:
            yield layer, _joined(found, names, shape, f"{source.path}: {layer}")


def named(layer: str, factors: Factors, naming: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The layer's tensors under their keys; alpha stays in float32."""
    kind = "lora" if isinstance(factors, LoraFactors) else "lycoris"
    stem = _STEMS[naming](kind, layer)
    tensors = {
        stem + _SUFFIXES[naming].get(part, f".{part}"): tensor.to(dtype, copy=True).contiguous()
        for part, tensor in factors.tensors().items()
    }
    return tensors | {stem + ALPHA: torch.tensor(factors.alpha, dtype=torch.float32)}


def original_layers(shape: FluxShape) -> dict[str, tuple[Name, ...]]:
    """The original's layers, each with those of diffusers' that it consists of, from the first row to the last."""
    layers: dict[str, tuple[Name, ...]] = {}
    for name in linear_names(shape.num_double, shape.num_single, shape.guidance):
        layers[name.original] = (*layers.get(name.original, ()), name)
    return layers


def _joined(found: Mapping[str, Factors], names: Sequence[Name], shape: FluxShape, where: str) -> Factors:
    """The factors of a layer of the original's from those of diffusers' that are adapted."""
    first = next(iter(found.values()))
    if len(names) == 1:
        if names[0].diffusers == SWAPPED_HALVES:
            swapped = first.rows(torch.arange(first.size()[0]).roll(shape.width))
            if swapped is None:
                raise JobError(_apart(where, "its halves stand the other way round there"))
            return swapped
        return first
    rows = [(name.rows[1] - name.rows[0]) * shape.width for name in names if name.rows]
    parts = [found.get(name.diffusers) for name in names]
    if isinstance(first, LokrFactors):
        return _joined_lokr([part for part in parts if isinstance(part, LokrFactors)], len(names), where)
    if isinstance(first, LohaFactors):
        return _joined_loha([part if isinstance(part, LohaFactors) else None for part in parts], rows)
    return _joined_lora([part if isinstance(part, LoraFactors) else None for part in parts], rows)


def _joined_lora(parts: Sequence[LoraFactors | None], rows: Sequence[int]) -> LoraFactors:
    there = [part for part in parts if part is not None]
    down, scales = there[0].down, {part.scale for part in there}
    if all(torch.equal(part.down, down) for part in there) and len(scales) == 1:
        ups = [torch.zeros(count, len(down)) if part is None else part.up for part, count in zip(parts, rows, strict=True)]
        return LoraFactors(down, torch.cat(ups), there[0].alpha)
    scale, rank = _common(scales), sum(part.rank for part in there)
    ups = [None if part is None else part.up * (part.scale / scale) for part in parts]
    return LoraFactors(torch.cat([part.down for part in there]), _blocks(ups, rows, rank), scale * rank)


def _joined_loha(parts: Sequence[LohaFactors | None], rows: Sequence[int]) -> LohaFactors:
    there = [part for part in parts if part is not None]
    first, scales = there[0], {part.scale for part in there}
    if len(scales) == 1 and all(torch.equal(part.w1_b, first.w1_b) and torch.equal(part.w2_b, first.w2_b) for part in there):
        whole = [
            torch.cat(
                [torch.zeros(count, first.rank) if part is None else a(part) for part, count in zip(parts, rows, strict=True)]
            )
            for a in (lambda part: part.w1_a, lambda part: part.w2_a)
        ]
        return LohaFactors(whole[0], first.w1_b, whole[1], first.w2_b, first.alpha)
    scale, rank = _common(scales), sum(part.rank for part in there)
    w1_a = _blocks([None if part is None else part.w1_a * (part.scale / scale) for part in parts], rows, rank)
    w2_a = _blocks([None if part is None else part.w2_a for part in parts], rows, rank)
    w1_b, w2_b = torch.cat([part.w1_b for part in there]), torch.cat([part.w2_b for part in there])
    return LohaFactors(w1_a, w1_b, w2_a, w2_b, scale * rank)


def _joined_lokr(parts: Sequence[LokrFactors], count: int, where: str) -> LokrFactors:
    """Those that one lokr was taken apart into; JobError for others."""
    first = parts[0]
    if len(parts) == count and all(part.alpha == first.alpha for part in parts):
        if all(_same(part.w2, first.w2) and _same(part.w1[1:], first.w1[1:]) for part in parts):
            return LokrFactors((torch.cat([part.w1[0] for part in parts]), *first.w1[1:]), first.w2, first.alpha)
        one_row = all(part.w1[0].shape[0] == 1 and _same(part.w1, first.w1) for part in parts)
        if one_row and all(_same(part.w2[1:], first.w2[1:]) for part in parts):
            return LokrFactors(first.w1, (torch.cat([part.w2[0] for part in parts]), *first.w2[1:]), first.alpha)
    raise JobError(_apart(where, "there it is one matrix with its neighbours, and a Kronecker product cannot hold several"))


def _apart(where: str, why: str) -> str:
    return (
        f"{where} is a lokr that cannot be said in this naming: {why}; keep the naming 'diffusers', which ComfyUI "
        "reads as well, or make it a LoRA with `flux-lora resize` first"
    )


def _blocks(ups: Sequence[Tensor | None], rows: Sequence[int], rank: int) -> Tensor:
    """(sum of rows, rank): each in its own rows and columns, zeros elsewhere."""
    whole, row, column = torch.zeros(sum(rows), rank), 0, 0
    for up, count in zip(ups, rows, strict=True):
        if up is not None:
            whole[row : row + count, column : column + up.shape[1]] = up
            column += up.shape[1]
        row += count
    return whole


def _common(scales: set[float]) -> float:
    """One strength for all: their own where they agree and are not zero, else 1."""
    return next(iter(scales)) if len(scales) == 1 and scales != {0.0} else 1.0


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
