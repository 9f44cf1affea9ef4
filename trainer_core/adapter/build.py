"""Puts the adapter that was planned on the frozen transformer, through PEFT.

PEFT wraps the layers and switches the adapter on and off; the parts themselves are made here, in float32 whatever the base is,
so that a run is a function of its job: PEFT would draw them from the global random state. What an adapted layer gives is
computed here too, in a hook on PEFT's layer. Of a LoRA beside a bfloat16 base PEFT would bring the activations to float32, each
layer a copy of its own that waits for the backward pass; here the thin parts come to the activations' format instead, and their
sum with the base is one product. Of LoKr and LoHa it would form the whole change in float32 for each layer and pass (on FLUX's
widest layers 150 MB) and ask the global random state whether to skip it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import HookRegistry, ModelHook
from peft import LoHaConfig, LoKrConfig, LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import Parameter, functional

from ..flux.fill import Visit, unseen
from ..flux.quantize import dequantised
from .dropout import SeededDropout
from .factors import kronecker_output, low_rank_sum
from .plan import FROM_THE_BASE, AdaptedModule, AdapterPlan
from .starts import DownFromStart, Parts, UpFromStart, fresh_parts, parts_from_weight

ADAPTER = "default"
HOOK = "adapter"

# where PEFT's layer keeps a kind's parts: part -> ParameterDict
LYCORIS_PARTS = {
    "lokr": {part: f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
    "loha": {part: f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b")},
}

Weights = Callable[[str], Tensor]


def add_adapter(
    transformer: FluxTransformer2DModel,
    plan: AdapterPlan,
    seed: int,
    initial: Mapping[str, Parts] | None = None,
    unquantised: Weights | None = None,
    visit: Visit = unseen,
) -> dict[str, Parameter]:
    """Put the adapter on the transformer; returns its trainable float32 parameters by name.

    `initial` are parts to start from, layer -> part -> tensor, for some layers or all. `unquantised` gives a layer's whole
    weight (out, in) where the transformer's own was quantised; loftq needs it. `visit` is told of each layer.
    """
    with torch.random.fork_rng(devices=[]):  # PEFT draws parts of its own, which are replaced below
        transformer.add_adapter(_peft_config(plan), adapter_name=ADAPTER)
    layers, device = adapted_layers(transformer), transformer.x_embedder.weight.device  # the card, wherever a layer waits
    assert layers.keys() == set(plan.names), "PEFT wrapped other layers than were planned"
    for module in plan.modules:
        visit(module.name)
        layer = layers[module.name]
        layer.scaling[ADAPTER] = module.strength
        if plan.init in FROM_THE_BASE:
            _start_from_base(layer, plan.init, module, seed, unquantised, device)
        else:
            parts = (initial or {}).get(module.name) or fresh_parts(plan.kind, plan.init, module, seed)
            shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
            assert shapes == module.shapes, f"{module.name}: parts {shapes}, planned were {module.shapes}"
            _set_parts(layer, plan.kind, {part: tensor.to(device, torch.float32) for part, tensor in parts.items()})
        if plan.dropout:
            layer.lora_dropout[ADAPTER] = SeededDropout(plan.dropout, seed, module.name)
        HookRegistry.check_if_exists_or_initialize(layer).register_hook(_ChangeHook(plan.kind), HOOK)
    return {name: parameter for name, parameter in transformer.named_parameters() if parameter.requires_grad}


def remove_adapter(transformer: FluxTransformer2DModel) -> None:
    """The base as it was; another adapter can be put on it."""
    for layer in adapted_layers(transformer).values():
        HookRegistry.check_if_exists_or_initialize(layer).remove_hook(HOOK, recurse=False)
    transformer.delete_adapters(ADAPTER)


def adapted_layers(transformer: FluxTransformer2DModel) -> dict[str, BaseTunerLayer]:
    """PEFT's wrappers by the full name of the layer that each wraps."""
    return {name: module for name, module in transformer.named_modules() if isinstance(module, BaseTunerLayer)}


def exported_parts(transformer: FluxTransformer2DModel, plan: AdapterPlan) -> dict[str, Parts]:
    """The parts of each layer as the file holds them, float32."""
    layers = adapted_layers(transformer)
    return {module.name: _exported(layers[module.name], plan) for module in plan.modules}


def _peft_config(plan: AdapterPlan) -> LoraConfig | LoKrConfig | LoHaConfig:
    """Ranks and alphas by layer. PEFT takes patterns, one for all layers alike; a LoKr without rank has rank and alpha 1."""
    common: dict[str, Any] = {
        "target_modules": _either(plan.names),
        "rank_pattern": _pattern({module.name: module.rank or 1 for module in plan.modules}),
        "alpha_pattern": _pattern({module.name: module.alpha for module in plan.modules}),
    }
    if plan.kind == "lora":
        return LoraConfig(r=1, lora_alpha=1, **common)
    return {"lokr": LoKrConfig, "loha": LoHaConfig}[plan.kind](r=1, alpha=1, **common)


def _pattern(values: Mapping[str, float]) -> dict[str, Any]:
    """Value by name -> value by pattern. The ^ keeps `proj_out` from meaning every name that ends so."""
    return {"^" + _either(name for name, v in values.items() if v == value): value for value in sorted(set(values.values()))}


def _either(names: Iterable[str]) -> str:
    return f"({'|'.join(re.escape(name) for name in names)})"


def _start_from_base(
    layer: Any, init: str, module: AdaptedModule, seed: int, unquantised: Weights | None, device: torch.device
) -> None:
    """A LoRA that remembers its start: pissa and olora are a part of the base, loftq of what quantisation took from it."""
    weight_OI = dequantised(layer.get_base_layer()).to(device, torch.float32)
    if init == "loftq":
        assert unquantised is not None, "loftq needs the weights as they were before quantisation"
        weight_OI = unquantised(module.name).to(weight_OI.device, torch.float32) - weight_OI
    parts = parts_from_weight(init, module, weight_OI, seed)
    layer.lora_A[ADAPTER] = DownFromStart(parts["down"], in_base=init != "loftq")
    layer.lora_B[ADAPTER] = UpFromStart(parts["up"], in_base=init != "loftq")


def _set_parts(layer: Any, kind: str, parts: Parts) -> None:
    if kind == "lora":
        layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight = Parameter(parts["down"]), Parameter(parts["up"])
        return
    for part, place in LYCORIS_PARTS[kind].items():
        container = layer.get_submodule(place)
        if ADAPTER in container:
            del container[ADAPTER]
        if part in parts:
            container[ADAPTER] = Parameter(parts[part])


def _lycoris_parts(layer: nn.Module, kind: str) -> Parts:
    containers = {part: layer.get_submodule(place) for part, place in LYCORIS_PARTS[kind].items()}
    return {part: container[ADAPTER] for part, container in containers.items() if ADAPTER in container}


def _exported(layer: Any, plan: AdapterPlan) -> Parts:
    if plan.kind != "lora":
        return {part: tensor.detach() for part, tensor in _lycoris_parts(layer, plan.kind).items()}
    down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    if plan.init in FROM_THE_BASE:
        return {"down": down.whole().detach(), "up": up.whole().detach()}
    return {"down": down.weight.detach(), "up": up.weight.detach()}


def _acting(part: nn.Module) -> Tensor:
    return part.acting() if isinstance(part, DownFromStart | UpFromStart) else part.weight


class _ChangeHook(ModelHook):
    """On PEFT's layers: the base's output and the adapter's. LoKr in float32, by its factors; LoRA, and LoHa by its whole
    change, which has no shorter way, in the activations' own format."""

    def __init__(self, kind: str):
        super().__init__()
        self._kind = kind

    def new_forward(self, layer: Any, x: Tensor) -> Tensor:
        output = layer.base_layer(x)
        if layer.disable_adapters:
            return output
        if self._kind == "lora":
            down_RI, up_OR = (_acting(part[ADAPTER]) for part in (layer.lora_A, layer.lora_B))
            return low_rank_sum(output, layer.lora_dropout[ADAPTER](x), down_RI, layer.scaling[ADAPTER] * up_OR)
        if self._kind == "lokr":
            change = layer.scaling[ADAPTER] * kronecker_output(x.float(), _lycoris_parts(layer, "lokr"))
        else:
            change = functional.linear(x, layer.get_delta_weight(ADAPTER).to(x.dtype))
        return (output + change).to(output.dtype)
