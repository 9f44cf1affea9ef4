"""Blocks of the frozen base that wait in host memory and visit the card when it is their turn.

Frozen weights never change, so they only ever travel to the card. A waiting block's weights are copied for its forward pass
and put in the place of the waiting ones while it runs; then nothing here holds on to them. What keeps them is the autograd
graph, exactly as long as it needs them: under gradient checkpointing not at all after the first forward, and after the
recomputation until the block's backward is done. So nothing stays behind, and no backward hook is needed. Without checkpointing
the graph would keep every copy, hence the two belong together.

While a block runs, the next one in the direction of travel is copied on a stream of its own, out of pinned memory. The waiting
blocks are spread evenly, so that a copy hides behind the blocks between. diffusers' group offloading moves modules as a whole,
the adapter's trained parameters included, and unloads after forward what backward still needs; so this is a hook of our own.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .load import FluxShape
from .modulation import HostLinear

HOOK = "waiting"

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
        for weights in self._waiting:
            for number, (owner, name, tensor) in enumerate(weights):
                resting = moved(tensor, _pinned if self._stream else _as_it_is)
                owner.register_parameter(name, resting)
                weights[number] = (owner, name, resting)

    def places(self, number: int) -> Weights:
        """Where the weights of waiting block `number` belong, and the waiting ones."""
        return self._waiting[number]

    def fetch(self, number: int) -> list[Parameter]:
        """Its weights on the card, in the order of `places`; the next block's are on their way when this returns."""
        onward = number - 1 if number <= self._last else number + 1
        here = self._coming.pop(number) if number in self._coming else self._copy(number)
        self._coming.clear()
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in here:
                moved(tensor, lambda part: part.record_stream(current) or part)
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
        HookRegistry.check_if_exists_or_initialize(block).register_hook(_VisitHook(stream, number), HOOK)


def moved(tensor: Tensor, convert: Convert) -> Parameter:
    """A frozen parameter whose plain tensors are converted, be it quantised by whichever library; the given one stays."""
    return (
        Parameter(_converted(tensor, convert), requires_grad=False)
        if not _is_4bit(tensor)
        else _converted_4bit(tensor, convert)
    )


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


def _converted(tensor: Tensor, convert: Convert) -> Tensor:
    if not is_traceable_wrapper_subclass(tensor):
        return convert(tensor.detach())
    names, context = tensor.__tensor_flatten__()
    inner = {name: _converted(getattr(tensor, name), convert) for name in names}
    return type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())


def _is_4bit(tensor: Tensor) -> bool:
    return hasattr(tensor, "quant_state")


def _converted_4bit(tensor: Any, convert: Convert) -> Parameter:
    """bitsandbytes keeps the scales beside the packed weights and moves them in place, so both are rebuilt."""
    from bitsandbytes.nn import Params4bit

    state = copy.copy(tensor.quant_state)
    state.absmax, state.code = convert(state.absmax), convert(state.code)
    if state.nested:
        state.offset, state.state2 = convert(state.offset), copy.copy(state.state2)
        state.state2.absmax, state.state2.code = convert(state.state2.absmax), convert(state.state2.code)
    return Params4bit(
        convert(tensor.data),
        requires_grad=False,
        quant_state=state,
        blocksize=tensor.blocksize,
        compress_statistics=tensor.compress_statistics,
        quant_type=tensor.quant_type,
        quant_storage=tensor.quant_storage,
        module=tensor.module,
        bnb_quantized=True,
    )


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.cpu().pin_memory()


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
