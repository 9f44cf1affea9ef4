"""Weights into a model that stands on the meta device: one at a time, so that no more than one is in memory twice."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import JobError

Read = Callable[[str], Tensor]


def fill(
    model: nn.Module, read: Read, dtype: torch.dtype, device: torch.device, leave_out: frozenset[str] = frozenset()
) -> None:
    """Every parameter is read by its name, brought to format and device, and frozen; modules in `leave_out` stay as they are.

    KeyError when there is no such tensor, JobError when it has another size.
    """
    for name, module in model.named_modules():
        if name in leave_out:
            continue
        for leaf, empty in list(module.named_parameters(recurse=False)):
            tensor = read(f"{name}.{leaf}")
            if tensor.shape != empty.shape:
                raise JobError(f"{name}.{leaf} has another size than it should")
            module.register_parameter(leaf, nn.Parameter(tensor.to(device, dtype), requires_grad=False))
    model.requires_grad_(False).eval()
