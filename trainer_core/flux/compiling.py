"""torch.compile of the repeated blocks: where it pays, what it needs, and when it stays out of the way.

Only the blocks are compiled, each kind once: a block is small, so the wait before the first step is that of two or three
graphs, whatever the depth. Sizes are symbols from the start (`dynamic=True`), so buckets, batches and the changing number of
tokens in a TREAD route share a graph, and which size came first changes nothing. Pictures and evaluations run `as_written`:
they are few, and each would wait for graphs of its own.

torch keeps what it made on disk (TORCHINDUCTOR_CACHE_DIR, else in the temporary folder), so the next run begins sooner.

A compiled step rounds elsewhere than one as written: losses agree to float32 rounding, bytes do not. So whether a run compiles
is a function of its job and the device, never of what was measured, and a resumed run does as the interrupted one did.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from ..errors import JobError
from ..tread import Span

HOOK = "apart"
WARM_UP_SECONDS = 90.0  # measured on two CPU cores, see docs/benchmarks.md
SAVED_SHARE = {
    "cpu": 0.03,
    "cuda": 0.1,
}  # of a step's time: measured in float32 with AVX2; on a card a guess, on the careful side
OPERATIONS_A_SECOND = {"cpu": 2e11, "cuda": 2e14}  # what a device may well do: too fast a guess leaves a run as written
COMPILERS = {"win32": "cl", "darwin": "clang++"}  # torch's own choices; elsewhere g++


def compile_blocks(transformer: FluxTransformer2DModel, spans: Sequence[Span], backend: str = "inductor") -> None:
    """Have blocks run compiled, from their next pass on. To be called once all hooks and the adapter are in place."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    num_double = len(transformer.transformer_blocks)
    for layer in compiled_layers(num_double, len(blocks) - num_double, spans):
        if layer >= num_double:
            HookRegistry.check_if_exists_or_initialize(blocks[layer]).register_hook(_ApartHook(), HOOK)
        blocks[layer].compile(backend=backend, dynamic=True)


def compiled_layers(num_double: int, num_single: int, spans: Sequence[Span]) -> list[int]:
    """The blocks that are worth it. The first of a kind is given its tokens in another form than the others, and where a route
    opens or closes a block does more; each of these would wait for a graph that it alone uses. So they stay as they are, unless
    that would leave less than half of the kind."""
    odd = {0, num_double} | {layer for span in spans for layer in (span.first, span.last)}
    layers: list[int] = []
    for kind in (range(num_double), range(num_double, num_double + num_single)):
        alike = [layer for layer in kind if layer not in odd]
        layers += alike if 2 * len(alike) >= len(kind) else kind
    return layers


def as_written(*, compiled: bool) -> AbstractContextManager[None]:
    """In here a model that was compiled runs as it is written. Nothing is to be done for one that was not, and what would do it
    takes seconds to import."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def pays(operations: float, device: torch.device) -> bool:
    """Whether a run of so many floating-point operations saves more time than compiling takes."""
    return operations / OPERATIONS_A_SECOND[device.type] * SAVED_SHARE[device.type] > WARM_UP_SECONDS


def missing_compiler(device: torch.device) -> str | None:
    """What torch.compile lacks here, with the mend, or None."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            name = "triton-windows" if sys.platform == "win32" else "triton"
            return f"torch.compile needs the package {name} for a card: python -m pip install {name}"
        return None
    wanted = os.environ.get("CXX") or COMPILERS.get(sys.platform, "g++")
    if shutil.which(wanted):
        return None
    mends = {
        "win32": "install Visual Studio's Build Tools (Desktop development with C++) and start from its command prompt",
        "darwin": "run xcode-select --install",
    }
    mend = mends.get(sys.platform, "install one, for instance with: apt install g++")
    return f"torch.compile needs a C++ compiler, and {wanted} is not found: {mend}"


def check_compiling(wish: str, device: torch.device) -> None:
    """JobError where compiling is wanted in any case and cannot be done."""
    if wish == "on" and (missing := missing_compiler(device)):
        raise JobError(f"training.torch_compile is 'on', but {missing}; or set it to 'off'")


class _ApartHook(ModelHook):
    """On a single block, whose two outputs are views of one tensor: torch compiles no such graph over quanto's weights."""

    def post_forward(self, module: nn.Module, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        text_BLD, image = output
        return text_BLD.clone(), image
