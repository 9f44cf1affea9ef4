"""AdamW whose two states are bfloat16: half their memory, the same course of training.

The trouble with short states: bfloat16 keeps 8 bits of a number, so neighbours are 1/256 to 1/128 of it apart. With
beta2 = 0.999 the running mean of the squared gradient moves by at most a thousandth of itself towards a smaller value, less
than half such a step, and rounding to the nearest puts it back where it was, for ever. The cure is to round at random: up or
down with chances that make the average exact (stochastic rounding). The states then wander a few percent about their float32
values, and the wandering averages out over the weights. The other known cure, to carry the rounding error along in a second
bfloat16 number (Kahan's compensation), would make two states of four bytes each: no smaller than float32, which is what they
are to be smaller than.

The weights themselves stay float32 (an adapter is small; its update is where precision counts), all arithmetic is float32, and
the random bits are a function of (seed, step), so that a resumed run draws what the straight one would have drawn. They are
drawn on the weights' own device: two random numbers a weight and step are too many to draw on the CPU and move.

AdamW: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2, with the decay scaled by the learning rate.
"""

import math
from collections.abc import Iterable

import torch
from torch import Generator, Tensor
from torch.nn import Parameter

from .rng import derive_seed


class AdamWBF16(torch.optim.Optimizer):
    """AdamW for float32 parameters with bfloat16 states. `seed` is that of the job."""

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-2,
        eps: float = 1e-6,
        seed: int,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps, "seed": seed, "step": 0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move every parameter that has a gradient; closures are not supported."""
        assert closure is None
        for number, group in enumerate(self.param_groups):
            group["step"] += 1
            seed = derive_seed(group["seed"], group["step"], f"rounding of group {number}")
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            random = {device: Generator(device).manual_seed(seed) for device in {p.device for p in parameters}}
            for parameter in parameters:
                self._move(parameter, group, random[parameter.device])

    def _move(self, parameter: Parameter, group: dict, random: Generator) -> None:
        assert parameter.dtype == torch.float32, "the adapter is float32"
        (beta1, beta2), step, state = group["betas"], group["step"], self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        mean = state["exp_avg"].float().lerp_(parameter.grad, 1 - beta1)
        square = state["exp_avg_sq"].float().mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        root = square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
        parameter.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1**step))
        state["exp_avg"].copy_(round_at_random(mean, random))
        state["exp_avg_sq"].copy_(round_at_random(square, random))


def round_at_random(values: Tensor, random: Generator) -> Tensor:
    """Finite float32 to one of the two bfloat16 around it, the nearer with the higher chance: exact on average.

    A bfloat16 is the upper half of a float32. Adding 16 random bits to the lower half carries into the upper one with a
    chance of lower half / 2^16, which is just the distance from the lower neighbour.
    """
    bits = torch.randint(0, 1 << 16, values.shape, generator=random, device=values.device, dtype=torch.int32)
    return bits.add_(values.view(torch.int32)).bitwise_and_(-(1 << 16)).view(torch.float32).to(torch.bfloat16)
