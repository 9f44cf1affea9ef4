"""An optimiser's state as tensors and plain data, and back, bit for bit.

torch's own load_state_dict casts every state to the type of its weight: fine for AdamW, the end of exactness for states of
bfloat16 or 8 bits. And what an optimiser keeps beside its tensors (prodigy's distance, schedule-free's sum of weights) is in
its parameter groups, as Python numbers. So both are read and written here directly: tensors go to safetensors in their own
type, everything else to JSON, which gives back each float exactly. Nothing is pickled.

The groups come back whole, but for the parameters and the learning rate, which is a function of the step.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_NOT_STATE = ("params", "lr")


def read_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Copies of the tensors, named 'state.parameter.entry' or 'group.group.entry', and the rest under the same names."""
    tensors, plain = {}, {}
    for name, value in _entries(optimizer).items():
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().clone().contiguous()  # a clone: some tensors are shared by all parameters
        else:
            plain[name] = _pack(value, name)
    return tensors, plain


def write_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """The inverse of `read_state`, for an optimiser that was made for the same parameters with the same arguments.

    States go to their weights' device. Those named step stay on the CPU, where torch keeps them, and so do those of the groups:
    an optimiser that wants them elsewhere moves them itself.
    """
    parameters = _parameters(optimizer)
    states: dict[Parameter, dict[str, Any]] = {}
    for name, value in (tensors | {name: _unpack(value) for name, value in plain.items()}).items():
        part, number, entry = name.split(".", 2)
        if part == "group":
            optimizer.param_groups[int(number)][entry] = value
            continue
        parameter = parameters[int(number)]
        if isinstance(value, Tensor) and entry != "step":
            value = value.to(parameter.device)
        states.setdefault(parameter, {})[entry] = value
    optimizer.state.clear()
    optimizer.state.update(states)
    if getattr(optimizer, "is_paged", False):
        _page(optimizer)


def _entries(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    entries = {}
    for number, group in enumerate(optimizer.param_groups):
        entries |= {f"group.{number}.{entry}": value for entry, value in group.items() if entry not in _NOT_STATE}
    for number, parameter in enumerate(_parameters(optimizer)):
        state = optimizer.state.get(parameter, {})
        entries |= {f"state.{number}.{entry}": value for entry, value in state.items()}
    return entries


def _parameters(optimizer: torch.optim.Optimizer) -> list[Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _page(optimizer: torch.optim.Optimizer) -> None:
    """Move the large states of a paged bitsandbytes optimiser into the memory that it would have got for them itself."""
    for parameter, state in optimizer.state.items():
        for entry in ("state1", "state2"):
            if entry in state:
                buffer = optimizer.get_state_buffer(parameter, dtype=state[entry].dtype)
                state[entry] = buffer.copy_(state[entry])


def _pack(value: Any, name: str) -> Any:
    """JSON has lists, not tuples; some optimisers compare the two."""
    if isinstance(value, tuple):
        return {"tuple": [_pack(item, name) for item in value]}
    if isinstance(value, list):
        return [_pack(item, name) for item in value]
    assert value is None or type(value) in (bool, int, float, str), (
        f"{name} is a {type(value)}: no place for it in a checkpoint"
    )
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(_unpack(item) for item in value["tuple"])
    return [_unpack(item) for item in value] if isinstance(value, list) else value
