"""Memory of one pass through FLUX, rehearsed on a few blocks and counted up to all of them.

Blocks of a kind are alike, so the peak grows by the same for each: three rehearsals, with (1, 1), (2, 1) and (1, 2) double and
single blocks, give what one more of each kind adds. All 57 would take half a minute.

Legend: B samples, H W picture height and width in pixels, L text tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import torch
from torch import nn

from ..adapter.build import add_adapter
from ..adapter.plan import AdapterPlan, plan_adapter
from ..flux.load import FluxShape, empty_transformer
from ..flux.predict import predict_velocity
from ..flux.recompute import recompute_blocks
from ..flux.vae import DOWNSCALE, LATENT_CHANNELS
from ..specs.adapter import LoraSpec
from .rehearse import Cost, rehearse


@dataclass(frozen=True)
class Pass:
    """What goes through the model at once; edges in pixels, (0, 0) where there is no reference."""

    batch: int
    width: int
    height: int
    num_text: int
    reference: tuple[int, int] = (0, 0)

    @property
    def num_tokens(self) -> int:
        """Image tokens of a sample, without those of its reference."""
        return self.width * self.height // (2 * DOWNSCALE) ** 2

    @property
    def num_joint(self) -> int:
        """All tokens of a sample: of its text, its picture and its reference."""
        return self.num_text + self.num_tokens + prod(self.reference) // (2 * DOWNSCALE) ** 2


@dataclass(frozen=True)
class Growth:
    """Cost of a pass: what is `fixed`, and what each block of a kind adds."""

    fixed: Cost
    double: Cost
    single: Cost

    def peak(self, num_double: float, num_single: float) -> int:
        """Bytes with so many blocks."""
        return int(self.fixed.peak + num_double * self.double.peak + num_single * self.single.peak)

    def flops(self, num_double: float, num_single: float) -> int:
        """Operations with so many blocks."""
        return int(self.fixed.flops + num_double * self.double.flops + num_single * self.single.flops)


@lru_cache(maxsize=32)
def training_growth(shape: FluxShape, lora: LoraSpec, dtype: torch.dtype, one: Pass, *, checkpointing: bool) -> Growth:
    """Forward and backward with the adapter on; without the gradients, which are freed as they come."""

    def work(model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop)
        model.train()
        if checkpointing:
            recompute_blocks(model, 1)
        predict(model, shape, one).square().mean().backward()

    return _growth(shape, lora, dtype, work)


@lru_cache(maxsize=32)
def sampling_growth(shape: FluxShape, lora: LoraSpec, dtype: torch.dtype, one: Pass) -> Growth:
    """One prediction without gradient."""

    def work(model: nn.Module) -> None:
        with torch.no_grad():
            predict(model.eval(), shape, one)

    return _growth(shape, lora, dtype, work)


def _growth(shape: FluxShape, lora: LoraSpec, dtype: torch.dtype, work: Callable[[nn.Module], None]) -> Growth:
    def cost(num_double: int, num_single: int) -> Cost:
        model = _small_model(replace(shape, num_double=num_double, num_single=num_single), lora, dtype)
        return rehearse(model, lambda: work(model))

    small = cost(1, 1)
    double, single = _less(cost(2, 1), small), _less(cost(1, 2), small)
    return Growth(_less(_less(small, double), single), double, single)


def _less(one: Cost, other: Cost) -> Cost:
    return Cost(one.peak - other.peak, one.flops - other.flops)


def plan_everywhere(model: nn.Module, lora: LoraSpec) -> AdapterPlan:
    """The job's adapter on every layer of its target, whichever blocks it names: a small model lacks most of them."""
    everywhere = {"lora_blocks": "", "rank_pattern": (), "lora_init_type": "default", "init_lora": ""}
    if lora.flux_lora_target in ("tiny", "nano"):
        everywhere["flux_lora_target"] = "all"
    return plan_adapter(model, lora.model_copy(update=everywhere))


def predict(model: nn.Module, shape: FluxShape, one: Pass, make: Callable[..., torch.Tensor] = torch.empty) -> torch.Tensor:
    """The model's answer to inputs of this size."""
    B = one.batch

    def latent(width: int, height: int) -> torch.Tensor:
        return make(B, LATENT_CHANNELS, height // DOWNSCALE, width // DOWNSCALE)

    return predict_velocity(
        model,
        latent(one.width, one.height),
        make(B),
        make(B, one.num_text, shape.t5_width),
        make(B, shape.clip_width),
        make(B),
        reference_BCHW=latent(*one.reference) if any(one.reference) else None,
    )


def _small_model(shape: FluxShape, lora: LoraSpec, dtype: torch.dtype) -> nn.Module:
    """On the meta device, in its formats, with the adapter on."""
    model = nn.Module.to(empty_transformer(shape), dtype).requires_grad_(False)  # diffusers' own `to` warns of nothing here
    add_adapter(model, plan_everywhere(model, lora), seed=0)
    return model


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None
