"""An adapter file to train on from (`init_lora`): which kind it must be and that it can still learn."""

from pathlib import Path

from ..errors import JobError
from ..flux.load import FluxShape
from .dialects import AdapterFile, read_adapter
from .file_factors import Kind
from .plan import AdaptedModule, given_module
from .starts import Parts


def initial_parts(adapter: AdapterFile) -> tuple[dict[str, AdaptedModule], dict[str, Parts]]:
    """The file's layers as the plan and the builder take them: rank, alpha and sizes; and the tensors. Each layer gets its
    own, since those that a file keeps fused share one."""
    parts = {
        name: {part.removeprefix("lokr_").removeprefix("hada_"): tensor.clone() for part, tensor in factors.tensors().items()}
        for name, factors in adapter.modules.items()
    }
    return {name: given_module(name, adapter.modules[name].alpha, tensors) for name, tensors in parts.items()}, parts


def initial_factors(path: Path, shape: FluxShape, lora_type: Kind) -> AdapterFile:
    """The adapter that training starts from; JobError when it is of another kind than the job trains, or scaled to nothing."""
    adapter = read_adapter(path, shape)
    if adapter.kind != lora_type:
        raise JobError(
            f"lora.init_lora: {path} is a {adapter.kind}, and lora.lora_type is {lora_type!r}; "
            f"set lora_type to {adapter.kind!r}, or choose a {lora_type} file"
        )
    silent = [name for name, factors in adapter.modules.items() if factors.scale == 0]
    if silent:
        raise JobError(
            f"lora.init_lora: {path} has alpha 0 in {len(silent)} layers, such as {silent[0]}: they change nothing and cannot "
            "learn; use another file"
        )
    return adapter
