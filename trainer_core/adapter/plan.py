"""The adapter before it exists: each adapted layer with its rank, alpha and the sizes of its parts.

A plan is made from the model without weights, so a mistake is found, and the size of the adapter known, before anything is
loaded. Everything later goes by the plan: `build` puts it on the transformer, `lora_file` writes it, `verify` expects it.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

from torch import Tensor, nn

from ..errors import JobError
from ..specs.adapter import LoraSpec
from ..specs.no_effect import changed
from .factors import Shapes, change_size, loha_shapes, lokr_shapes, lora_shapes, rank_of
from .targets import count_blocks, linear_layers, module_ranks, target_modules, within_blocks

log = logging.getLogger(__name__)

FROM_THE_BASE = frozenset({"olora", "pissa", "loftq"})


@dataclass(frozen=True)
class AdaptedModule:
    """One adapted layer: part -> shape as in `factors.py`. `rank` is 0 where no part is of low rank; the strength is then 1."""

    name: str
    rank: int
    alpha: float
    shapes: Shapes

    @property
    def strength(self) -> float:
        return self.alpha / self.rank if self.rank else 1.0

    @property
    def num_parameters(self) -> int:
        return sum(prod(shape) for shape in self.shapes.values())


@dataclass(frozen=True)
class AdapterPlan:
    """All adapted layers, in the model's order. `kind` is lora, lokr or loha; `init` and `dropout` are the job's."""

    kind: str
    init: str
    dropout: float
    modules: tuple[AdaptedModule, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(module.name for module in self.modules)

    @cached_property
    def num_parameters(self) -> int:
        return sum(module.num_parameters for module in self.modules)

    @property
    def exported(self) -> tuple[AdaptedModule, ...]:
        """The layers as the file holds them: the difference of two LoRAs, trained less start, is a LoRA of twice the rank."""
        if self.init not in FROM_THE_BASE:
            return self.modules
        return tuple(
            replace(
                module,
                rank=2 * module.rank,
                alpha=2 * module.alpha,
                shapes=lora_shapes(module.shapes["up"][0], module.shapes["down"][1], 2 * module.rank),
            )
            for module in self.modules
        )

    def summary(self) -> dict[str, Any]:
        """For the manifest: what was chosen, and how many layers have each rank, alpha and (LoKr) small factor."""
        small = Counter("x".join(map(str, module.shapes["w1"])) for module in self.modules if "w1" in module.shapes)
        return {
            "kind": self.kind,
            "init": self.init,
            "dropout": self.dropout,
            "ranks": dict(Counter(str(module.rank) for module in self.modules)),
            "alphas": dict(Counter(str(module.alpha) for module in self.modules)),
            "strengths": sorted({module.strength for module in self.modules}),
            "small_factors": dict(small),
        }


def plan_adapter(
    skeleton: nn.Module,
    spec: LoraSpec,
    given: Mapping[str, AdaptedModule] | None = None,
    *,
    quantised: bool = False,
) -> AdapterPlan:
    """The plan for a transformer of the skeleton's layers, which may be on the meta device. JobError names a wrong field.

    `given` are layers whose rank, alpha and parts are settled already, by a file to start from: they replace the spec's, and
    those that the spec does not target are adapted too. `quantised`: whether the base will be; loftq needs that.
    """
    if spec.lora_init_type == "loftq" and not quantised:
        raise JobError(
            "lora.lora_init_type 'loftq' starts from what quantisation took from the base, but this base is not quantised; "
            "quantise it, or choose 'default' or 'pissa'"
        )
    for module in (given or {}).values():
        _check_given(skeleton, module, spec.lora_type)
    num_blocks = count_blocks(skeleton)
    names = target_modules(skeleton, spec.flux_lora_target, spec.peft_lora_target_modules)
    if spec.lora_blocks.strip():
        names = within_blocks(names, spec.lora_blocks, num_blocks)
    ranks = module_ranks(names, spec.lora_rank, spec.rank_pattern, num_blocks)
    planned = {name: _plan_module(skeleton, name, ranks[name], spec) for name in names}
    if spec.lora_type == "lokr":
        _warn_of_idle(spec, planned)
    modules = planned | dict(given or {})
    order = {name: number for number, name in enumerate(linear_layers(skeleton))}
    return AdapterPlan(
        kind=spec.lora_type,
        init=spec.lora_init_type,
        dropout=spec.lora_dropout,
        modules=tuple(sorted(modules.values(), key=lambda module: order[module.name])),
    )


def given_module(name: str, alpha: float | None, parts: Mapping[str, Tensor]) -> AdaptedModule:
    """The plan's entry for a layer whose parts exist already; without an alpha its strength is 1."""
    shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
    rank = rank_of(shapes)
    return AdaptedModule(name, rank, float(alpha if alpha is not None else rank or 1), shapes)


def _warn_of_idle(spec: LoraSpec, planned: Mapping[str, AdaptedModule]) -> None:
    """What a LoKr of these layers has no use for."""
    idle = []
    if not any(module.rank for module in planned.values()):
        whole, too_much = "with lokr_full_matrix a LoKr has no rank", "at this rank no large factor becomes smaller"
        why = whole if spec.lokr_full_matrix else too_much
        idle += [(name, why) for name in ("lora_rank", "lora_alpha", "rank_pattern")]
    if not any(_in_attention(name) for name in planned):
        idle.append(("lokr_factor", "no attention layer is adapted"))
    if all(_in_attention(name) for name in planned):
        idle.append(("lokr_factor_feed_forward", "no layer outside attention is adapted"))
    for name, why in idle:
        if changed(spec, [name]):
            log.warning("lora.%s has no effect: %s", name, why)


def _in_attention(name: str) -> bool:
    return ".attn." in name


def _check_given(skeleton: nn.Module, module: AdaptedModule, kind: str) -> None:
    layer, size = skeleton.get_submodule(module.name), change_size(kind, module.shapes)
    if size is None:
        parts = ", ".join(f"{part} {shape}" for part, shape in module.shapes.items())
        raise JobError(
            f"lora.init_lora: what the file holds for {module.name} ({parts}) is not a whole {kind}; "
            "set lora_type to the file's kind, or choose another file"
        )
    if size != (layer.out_features, layer.in_features):
        raise JobError(
            f"lora.init_lora: the file changes a weight of {size[0]} x {size[1]} in {module.name}, this base's has "
            f"{layer.out_features} x {layer.in_features}; it was made for another model, choose another file"
        )


def _plan_module(skeleton: nn.Module, name: str, rank: int, spec: LoraSpec) -> AdaptedModule:
    layer = skeleton.get_submodule(name)
    sizes = layer.out_features, layer.in_features
    if spec.lora_type == "lokr":
        factor = spec.lokr_factor if _in_attention(name) else spec.lokr_factor_feed_forward
        shapes = lokr_shapes(*sizes, factor, None if spec.lokr_full_matrix else rank)
    else:
        shapes = {"lora": lora_shapes, "loha": loha_shapes}[spec.lora_type](*sizes, rank)
    rank = rank_of(shapes)
    return AdaptedModule(name, rank, (spec.lora_alpha or float(rank)) if rank else 1.0, shapes)
