"""How much memory a piece of work would take, found by doing it without numbers.

torch's fake tensors know their size and format but hold nothing. Work on them takes every step that the real work takes, so the
bytes of all that is alive at once can be counted from headers alone, on any machine: PEFT's float32 casts, what checkpointing
keeps, what attention saves. What it cannot see: scratch memory inside a kernel, and what an allocator rounds up.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Ledger(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, `now` and at their most, `peak`; and floating-point operations."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        count = flop_registry.get(function.overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage())
        return result

    def _meet(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name in self._known:
            return
        self._known.add(name)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, name, size)

    def _forget(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.now -= size


@dataclass(frozen=True)
class Cost:
    """The most bytes that work needs at once beyond the model's own parameters, and its floating-point operations."""

    peak: int
    flops: int


def rehearse(model: nn.Module, work: Callable[[], Any]) -> Cost:
    """What the work would cost. The model is on the meta device, and is used up; what the work makes itself counts."""
    with FakeTensorMode(allow_non_fake_inputs=True), Ledger() as ledger:
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                module.register_parameter(name, Parameter(fake, requires_grad=parameter.requires_grad))
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype), persistent=False)
        before = ledger.peak = ledger.now
        work()
        return Cost(ledger.peak - before, ledger.flops)
