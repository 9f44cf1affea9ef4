"""The frozen base shared out among processes: each keeps a part of every block (FSDP2).

For a base that one card cannot hold, or not beside the activations. Before a block runs, its parts are gathered from all
processes, and freed after it; torch's own `fully_shard` does both, and fetches the next block meanwhile. The base never
changes, so nothing travels back. The adapter is left out: small, whole in every process, its gradients are added up as always.

It costs the traffic of the base twice a step, for the forward and the backward pass, and makes the processes go in step: no
one may run a block that the others do not run, too (`Group.in_step`).
"""

import inspect
from collections.abc import Iterable

import torch
from diffusers import FluxTransformer2DModel
from torch.nn import Parameter

from ..errors import JobError
from ..specs.base import BaseModelSpec
from .modulation import HostLinear
from .quantize import WHOLE

BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")


def check_sharing(base: BaseModelSpec) -> None:
    """JobError where this base cannot be shared out."""
    if base.base_model_precision not in WHOLE:
        raise JobError(
            f"base.base_model_precision is {base.base_model_precision!r}, and a quantised base cannot be shared out (FSDP); "
            "choose 'bf16', or leave out --use_fsdp: quantised, it fits on one card"
        )
    if base.blocks_to_swap:
        raise JobError("base.blocks_to_swap and a base that is shared out (FSDP) exclude each other; set it to 0")
    from torch.distributed.fsdp import fully_shard

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise JobError(f"torch {torch.__version__} cannot leave an adapter out of FSDP; install a newer one")


def stays_until_shared(name: str) -> bool:
    """Whether the layer of this name waits in host memory until it is shared out."""
    return name.startswith(BLOCKS)


def share_out(transformer: FluxTransformer2DModel, trained: Iterable[Parameter]) -> None:
    """Leave in this process its part of every block, on its card; what is trained, what stays on the host, and the few layers
    around the blocks remain whole."""
    from torch.distributed.fsdp import fully_shard

    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    on_host = [p for module in transformer.modules() if isinstance(module, HostLinear) for p in module.parameters()]
    kept = {*trained, *on_host}
    for block in blocks:
        fully_shard(block, ignored_params=kept, reshard_after_forward=True)
    around = {p for name, p in transformer.named_parameters() if not name.startswith(BLOCKS)}
    fully_shard(transformer, ignored_params=kept | around)
