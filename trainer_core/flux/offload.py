"""Blocks of the frozen base that wait in host memory and visit the card when it is their turn.

Frozen weights never change, so they only ever travel to the card. A waiting block's weights are copied for its forward pass
and put in the place of the waiting ones while it runs; then nothing here holds on to them. What keeps them is the autograd
graph, exactly as long as it needs them: under gradient checkpointing not at all after the first forward, and after the
recomputation until the block's backward is done. So nothing stays behind, and no backward hook is needed. Without checkpointing
the graph would keep every copy, hence the two belong together. (bitsandbytes' 4-bit product keeps its weight outside of the
graph's reach; `four_bit.py` mends that.)

While a block runs, the next one in the direction of travel is copied on a stream of its own, out of pinned memory. The waiting
blocks are spread evenly, so that a copy hides behind the blocks between. diffusers' group offloading moves modules as a whole,
the adapter's trained parameters included, and unloads after forward what backward still needs; so this is a hook of our own.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .four_bit import HOOK as FOUR_BIT_HOOK
from .four_bit import FourBitHook, is_four_bit, rebuilt
from .load import FluxShape
from .modulation import HostLinear
from .quantize import plain_tensors

HOOK = "waiting"
ALIGNMENT = 256  # bytes

Convert = Callable[[Tensor], Tensor]
Weights = list[tuple[nn.Module, str, Parameter]]


class BlockStream:
    """The waiting blocks' weights, and their copies on the way to the card. `fetch` gives a block's."""

    def __init__(self, blocks: list[nn.Module], device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._waiting = [_frozen_weights(block) for block in blocks]
        self._coming: dict[int, list[Parameter]] = {}
        self._last = -1
        if self._stream is not None:
            self._waiting = [_pinned(weights) for weights in self._waiting]

    def places(self, number: int) -> Weights:
        """Where the weights of waiting block `number` belong, and the waiting ones."""
        return self._waiting[number]

    def fetch(self, number: int) -> list[Parameter]:
        """Its weights on the card, in the order of `places`; the next block's are on their way when this returns."""
        is_backward = number <= self._last and (number, self._last) != (0, 0)  # the first block's backward, then its forward
        onward = number - 1 if is_backward else number + 1
        here = self._coming.pop(number) if number in self._coming else self._copy(number)
        self._coming.clear()
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for part in (part for tensor in here for part in plain_tensors(tensor)):
                part.record_stream(current)
        if 0 <= onward < len(self._waiting):
            self._coming[onward] = self._copy(onward)
        self._last = number
        return here

    def _copy(self, number: int) -> list[Parameter]:
        def to_card(tensor: Tensor) -> Tensor:
            return tensor.to(self._device, non_blocking=True, copy=True)

        with torch.no_grad(), torch.cuda.stream(self._stream):
            return [moved(tensor, to_card) for _, _, tensor in self._waiting[number]]


def waiting_blocks(num_blocks: int, count: int) -> list[int]:
    """Which of the blocks wait: evenly spread, the first never, since nothing could hide its copy."""
    return [num_blocks - 1 - number * num_blocks // count for number in reversed(range(count))] if count else []


def block_name(number: int, num_double: int) -> str:
    """What the names of the layers of block `number` begin with, counted over the double blocks, then the single ones."""
    if number < num_double:
        return f"transformer_blocks.{number}."
    return f"single_transformer_blocks.{number - num_double}."


def waiting_layers(shape: FluxShape, count: int) -> Callable[[str], bool]:
    """Tells whether the layer of a name belongs to a block that waits."""
    chosen = waiting_blocks(shape.num_double + shape.num_single, count)
    begin = tuple(block_name(number, shape.num_double) for number in chosen)
    return lambda name: name.startswith(begin) if begin else False


def let_blocks_wait(transformer: FluxTransformer2DModel, count: int, device: torch.device) -> None:
    """Have so many blocks wait, whose weights are in host memory. To be called before TREAD's hooks are installed."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    chosen = [blocks[number] for number in waiting_blocks(len(blocks), count)]
    stream = BlockStream(chosen, device)
    for number, block in enumerate(chosen):
        for owner, name, tensor in stream.places(number):
            if name == "weight" and is_four_bit(tensor):
                HookRegistry.check_if_exists_or_initialize(owner).register_hook(FourBitHook(owner), FOUR_BIT_HOOK)
        HookRegistry.check_if_exists_or_initialize(block).register_hook(_VisitHook(stream, number), HOOK)


def moved(tensor: Tensor, convert: Convert) -> Parameter:
    """A frozen parameter whose plain tensors are converted, be it quantised by whichever library; the given one stays."""
    parts = iter([convert(part.detach()) for part in plain_tensors(tensor)])
    return rebuilt(tensor, parts) if is_four_bit(tensor) else Parameter(_rewrapped(tensor, parts), requires_grad=False)


def side_by_side(tensors: list[Tensor], *, pinned: bool) -> Iterator[Tensor]:
    """Copies of the tensors in one piece of host memory. torch rounds every pinned piece up to a power of two, which for
    FLUX's layers one by one would be 1.8 times their size."""
    sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
    whole = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=pinned)
    for tensor, piece in zip(tensors, whole.split(sizes), strict=True):
        yield piece[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


class _VisitHook(ModelHook):
    """On a waiting block: its weights are on the card while it runs."""

    def __init__(self, stream: BlockStream, number: int):
        super().__init__()
        self._stream = stream
        self._number = number

    def new_forward(self, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        places = self._stream.places(self._number)
        for (owner, name, _), tensor in zip(places, self._stream.fetch(self._number), strict=True):
            owner.register_parameter(name, tensor)
        try:
            return self.fn_ref.original_forward(*args, **kwargs)
        finally:
            for owner, name, resting in places:
                owner.register_parameter(name, resting)


def _frozen_weights(block: nn.Module) -> Weights:
    """All parameters that are not trained, but for the modulation that never leaves the host."""
    weights: Weights = []
    resident = {id(part) for module in block.modules() if isinstance(module, HostLinear) for part in module.modules()}
    for module in block.modules():
        if id(module) not in resident:
            weights += [(module, name, p) for name, p in module.named_parameters(recurse=False) if not p.requires_grad]
    return weights


def _pinned(weights: Weights) -> Weights:
    """The weights of one block in pinned memory, put in the place of the given ones."""
    copies = side_by_side([part for _, _, tensor in weights for part in plain_tensors(tensor)], pinned=True)
    resting = [(owner, name, moved(tensor, lambda part: next(copies))) for owner, name, tensor in weights]
    for owner, name, tensor in resting:
        owner.register_parameter(name, tensor)
    return resting


def _rewrapped(tensor: Tensor, parts: Iterator[Tensor]) -> Tensor:
    """The tensor, wrapped as it is, around other plain ones."""
    if not is_traceable_wrapper_subclass(tensor):
        return next(parts)
    names, context = tensor.__tensor_flatten__()
    inner = {name: _rewrapped(getattr(tensor, name), parts) for name in names}
    return type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
