"""A frozen LoRA on the base: it helps in training, and the pictures are made without it.

schnell was distilled to few steps, and training it as if it were dev undoes that. An assistant LoRA brings the un-distilled
behaviour back while the LoRA above it learns the subject; left out afterwards, the speed is there again.

The one idea: a forward hook on each adapted Linear adds strength * up(down(x)) to what the layer gives. The hook knows
neither the weight nor PEFT. So the base may be quantised, since nothing is merged; PEFT may wrap the layer before or after,
since its wrapper calls the layer; PEFT's switches, which also thaw and freeze, do not reach the assistant; and it is in no
state dict, hence never exported. At strength 0 the hook leaves the output alone, so the result is the base's to the last bit.

The factors take the format and device of the layer's input, that is the base's. float32 gains nothing, because the sum is
rounded to the base's format in any case: on pico in bfloat16 the velocity is off by 5.3 % with factors in either format, by
5.1 % with the LoRA merged, and by 5.5 % without any. alpha / rank is folded in while still float32.

Costs two thin products a layer. Gradient checkpointing repeats the forward pass inside backward, so backward must lie inside
the same `at`; outside it raises, because the repetition stores fewer tensors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import linear

from ..errors import JobError
from ..flux.load import FluxShape
from .dialects import read_adapter
from .file_factors import LoraFactors


class Assistant:
    """The frozen factors and their strength, 0 outside `at`. Quantise before: a layer that is replaced loses its hook."""

    def __init__(self, transformer: FluxTransformer2DModel, factors: dict[str, LoraFactors]):
        self.strength = 0.0
        self._pairs = {name: (lora.down, lora.scale * lora.up) for name, lora in factors.items()}
        for name in factors:
            transformer.get_submodule(name).register_forward_hook(partial(self._add, name))

    @contextmanager
    def at(self, strength: float) -> Iterator[None]:
        """Forward (and backward) passes inside have the assistant at this strength; inner ones hide outer ones."""
        before, self.strength = self.strength, strength
        try:
            yield
        finally:
            self.strength = before

    def _add(self, name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self.strength == 0:
            return None
        down, up = self._placed(name, inputs[0])
        return torch.add(output, linear(linear(inputs[0], down), up).to(output), alpha=self.strength)

    def _placed(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's pair where and as its input is; moved once, and again only when the base moves."""
        down, up = self._pairs[name]
        if down.device != like.device or down.dtype != like.dtype:
            with torch.inference_mode(False):  # a picture may come first; its tensors would be of no use to backward
                down, up = self._pairs[name] = (down.to(like.device, like.dtype), up.to(like.device, like.dtype))
        return down, up


def add_assistant(transformer: FluxTransformer2DModel, path: Path, shape: FluxShape) -> Assistant:
    """Put the LoRA of this file on the base, in any naming; off until `at`. JobError when it is not a LoRA for this base."""
    adapter = read_adapter(path, shape)
    if adapter.kind != "lora":
        raise JobError(
            f"base.assistant_lora_path: {path} is a {adapter.kind}; an assistant must be a LoRA, choose such a file or none"
        )
    return Assistant(transformer, adapter.modules)
