"""How long a step will take here, from a real step of a small part of the model: one block of each kind, at the real width.

Its weights are random, which changes nothing in the time. The seconds grow with the floating-point operations (`rehearse.py`).
"""

import statistics
import time
from dataclasses import replace

import torch

from ..adapter.build import add_adapter
from ..flux.eight_bit import base_quantiser
from ..flux.fill import fill
from ..flux.load import empty_transformer
from ..flux.recompute import recompute_blocks
from ..setup import Setup
from .activations import plan_everywhere, predict, training_growth
from .phases import largest_pass

ROUNDS = 3
SPREAD = 0.02


def seconds_per_step(setup: Setup) -> float:
    """Of an optimiser step of the job, without reading and reports; TREAD's savings are not counted."""
    training, shape = setup.job.training, setup.shape
    part = replace(shape, num_double=1, num_single=1)
    model, random = empty_transformer(part), torch.Generator().manual_seed(0)
    sizes = {name: tensor.shape for name, tensor in model.named_parameters()}

    def read(name: str) -> torch.Tensor:
        return SPREAD * torch.randn(sizes[name], generator=random)

    fill(model, read, setup.dtype, setup.device, base_quantiser(setup.job.base, setup.device))
    parameters = add_adapter(model, plan_everywhere(model, setup.job.lora), seed=0)
    model.train()
    recomputes = bool(setup.recomputed_layers)
    if recomputes:
        recompute_blocks(model, 1)
    one = largest_pass(setup)
    times = []
    for _ in range(1 + ROUNDS):  # the first warms up
        began = time.perf_counter()
        predict(model, part, one, torch.ones).square().mean().backward()
        float(next(iter(parameters.values())).grad.sum())  # waits for the card
        times.append(time.perf_counter() - began)
    growth = training_growth(shape, setup.job.lora, setup.dtype, one, checkpointing=recomputes)
    whole = growth.flops(shape.num_double, shape.num_single) / growth.flops(1, 1)
    return statistics.median(times[1:]) * whole * training.gradient_accumulation_steps
