"""Adds the adapter to the frozen transformer, through PEFT.

At the start A is Kaiming-uniform and B is zero, so the adapted model is exactly the base. PEFT draws A from the global
random state; it is drawn again here from the job's seed, module by module, so that a run is a function of its job.
"""

import math
import re
from collections.abc import Sequence

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch.nn import Parameter

from ..rng import generator
from ..specs.adapter import LoraSpec

ADAPTER = "default"


def effective_alpha(spec: LoraSpec) -> float:
    """lora_alpha, or the rank where it is 0."""
    return spec.lora_alpha or float(spec.lora_rank)


def add_lora(transformer: FluxTransformer2DModel, spec: LoraSpec, modules: Sequence[str], seed: int) -> dict[str, Parameter]:
    """Put a LoRA on these modules; returns its trainable float32 parameters by name."""
    pattern = "|".join(re.escape(name) for name in modules)
    config = LoraConfig(r=spec.lora_rank, lora_alpha=effective_alpha(spec), target_modules=f"({pattern})")
    transformer.add_adapter(config, adapter_name=ADAPTER)
    for name, layer in lora_layers(transformer).items():
        down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        down.float(), up.float()
        drawn = torch.empty(down.weight.shape)
        torch.nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator(seed, 0, f"lora {name}"))
        down.weight.data.copy_(drawn)
        up.weight.data.zero_()
    return {name: parameter for name, parameter in transformer.named_parameters() if parameter.requires_grad}


def lora_layers(transformer: FluxTransformer2DModel) -> dict[str, LoraLayer]:
    """PEFT's wrappers by the full name of the module that each wraps."""
    return {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}
