"""Weights into a model that stands on the meta device: a layer at a time, so that no more than one is in memory twice.

Each layer is read, brought to its format and its place, and quantised at once where that is wanted. So the whole model is never
in memory in the file's format. Weights that stay as they are in the file, on the CPU, remain views of it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import JobError
from .quantize import Quantiser

Read = Callable[[str], Tensor]
Visit = Callable[[str], None]  # told the name of each tensor before it is read; what it raises ends the reading
HOST = torch.device("cpu")


def nothing(name: str) -> bool:
    """No layer stays on the host."""
    return False


def unseen(name: str) -> None:
    """Nobody looks on."""


def watched(read: Read, visit: Visit) -> Read:
    """The same, with somebody who looks on."""

    def read_watched(name: str) -> Tensor:
        visit(name)
        return read(name)

    return read_watched


def fill(
    model: nn.Module,
    read: Read,
    dtype: torch.dtype,
    device: torch.device,
    quantiser: Quantiser | None = None,
    *,
    leave_out: frozenset[str] = frozenset(),
    stays_on_host: Callable[[str], bool] = nothing,
    waits_on_host: Callable[[str], bool] = nothing,
) -> None:
    """Every parameter is read by its name, brought to format and device, and frozen; modules in `leave_out` stay as they are,
    those that stay on the host are neither quantised nor moved, those that wait there are quantised first.

    KeyError when there is no such tensor, JobError when it has another size.
    """
    for name, module in list(model.named_modules()):
        if name in leave_out:
            continue
        on_host = stays_on_host(name)
        is_quantised = quantiser is not None and quantiser.takes(name, module) and not on_host
        home = HOST if on_host or waits_on_host(name) else device
        place = quantiser.via if is_quantised else home
        for leaf, empty in list(module.named_parameters(recurse=False)):
            tensor = read(f"{name}.{leaf}")
            if tensor.shape != empty.shape:
                raise JobError(f"{name}.{leaf} has another size than it should")
            module.register_parameter(leaf, nn.Parameter(tensor.to(place, dtype), requires_grad=False))
        if is_quantised:
            model.set_submodule(name, quantiser.quantise(module).to(home))
    model.requires_grad_(False).eval()
