"""A running average of the adapter (EMA): smoother than the weights of any one step, and a little behind them.

After every so many steps  average = decay * average + (1 - decay) * weights.  At the start the average would be mostly the
untrained adapter, so the decay begins low and rises to the one that was asked for: min(decay, (1 + n) / (10 + n)) at update n,
as in Karras et al. 2024 (arXiv 2312.02696, appendix C.3) and the libraries before it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter


class Ema:
    """The average of these parameters, on their device. `tensors` are its values by the parameters' names."""

    def __init__(self, parameters: Mapping[str, Parameter], decay: float, interval: int):
        self.tensors: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._parameters = parameters
        self._decay = decay
        self._interval = interval

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step number `step`, counted from 1."""
        if step % self._interval:
            return
        number = step // self._interval
        decay = min(self._decay, (1 + number) / (10 + number))
        weights = [parameter.detach() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self.tensors.values()), weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters hold the average in here, and their own values again afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data
