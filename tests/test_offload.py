"""Blocks and activations that wait in host memory: the same training, and little on the card at a time.

Without a card, "the card" is the CPU too: copies are made all the same, and counted.
"""

import itertools

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from support import add_lora, job_data, run_in_process
from trainer_core.errors import JobError
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.fill import nothing
from trainer_core.flux.load import load_transformer
from trainer_core.flux.modulation import is_modulation, keep_on_host
from trainer_core.flux.offload import block_name, let_blocks_wait, moved, side_by_side, waiting_blocks
from trainer_core.flux.predict import predict_velocity
from trainer_core.flux.quantize import dequantised, make_quantiser, plain_tensors, stored_bytes
from trainer_core.flux.recompute import recompute_blocks
from trainer_core.flux.routing import TokenRouter
from trainer_core.job_file import parse_job
from trainer_core.plan.rehearse import Ledger
from trainer_core.setup import prepare
from trainer_core.specs.adapter import LoraSpec
from trainer_core.tread import Span

CPU = torch.device("cpu")
PRECISIONS = ["no_change", "int8-quanto", "nf4-bnb", "int8-torchao"]


def inputs():
    random = torch.Generator().manual_seed(0)
    x, text, pooled = (torch.randn(shape, generator=random) for shape in ((2, 16, 8, 8), (2, 32, 128), (2, 64)))
    return x, torch.tensor([0.3, 0.8]), text, pooled, torch.ones(2)


def pico(precision: str = "no_change", swap: int = 0, offload: bool = False, on_host: bool = False):
    quantiser = make_quantiser(precision, CPU)
    transformer = load_transformer(PICO_FILES.transformer, torch.float32, CPU, quantiser, is_modulation if on_host else nothing)
    if on_host:
        keep_on_host(transformer, CPU)
    parameters = add_lora(transformer, LoraSpec(flux_lora_target="all+ffs"))
    recompute_blocks(transformer, 1, offload=offload)
    if swap:
        let_blocks_wait(transformer, swap, CPU)
    return transformer.train(), parameters


class CopyWatch(TorchDispatchMode):
    """Notes the size of every tensor that is copied into another."""

    def __init__(self):
        super().__init__()
        self.copied: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.copy_.default:
            self.copied.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


def step(transformer: nn.Module, parameters: dict) -> tuple[torch.Tensor, dict]:
    prediction = predict_velocity(transformer, *inputs())
    prediction.square().mean().backward()
    return prediction.detach(), {name: parameter.grad for name, parameter in parameters.items()}


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_waiting_blocks_change_no_value_and_no_gradient(precision, on_host):
    expected, gradients = step(*pico(precision, on_host=on_host))
    for count in (1, 3, 6):
        found, own = step(*pico(precision, swap=count, on_host=on_host))
        assert torch.equal(found, expected) and all(torch.equal(own[name], gradients[name]) for name in gradients)


def test_at_most_two_waiting_blocks_are_on_the_card_and_none_is_left():
    transformer, parameters = pico(swap=6)
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    frozen = [stored_bytes(block) - sum(p.numel() * 4 for p in block.parameters() if p.requires_grad) for block in blocks]
    plain, own = pico()
    with Ledger() as without:
        step(plain, own)
    with Ledger() as waiting:
        step(transformer, parameters)
    assert waiting.peak - without.peak <= 2 * max(frozen) + 4096
    kept = sum(parameter.grad.numel() * 4 for parameter in parameters.values())
    assert without.now >= kept and waiting.now - without.now < 0.1 * min(frozen)  # the gradients stay, and no block


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_visitor_outlives_its_block_while_the_graph_waits_for_backward(precision):
    """Each layer's weight is watched while the layer runs; the graph of the whole pass is still there when it is looked for."""
    transformer, _ = pico(precision, swap=6)
    visitors = []

    def watch(layer: nn.Module, given: tuple) -> None:
        visitors.extend(StorageWeakRef(part.untyped_storage()) for part in plain_tensors(layer.weight))

    for module in transformer.transformer_blocks.modules():
        if isinstance(module, BaseTunerLayer):
            module.get_base_layer().register_forward_pre_hook(watch)
    prediction = predict_velocity(transformer, *inputs())
    assert len(visitors) >= 2 * 12 and all(visitor.expired() for visitor in visitors)
    prediction.square().mean().backward()
    assert all(visitor.expired() for visitor in visitors)


def test_copies_side_by_side_are_the_tensors_in_one_piece_of_memory():
    random = torch.Generator().manual_seed(0)
    tensors = [
        torch.rand(3, 5, generator=random),
        torch.arange(7, dtype=torch.uint8),
        torch.tensor(2.5),
        torch.rand(4).bfloat16(),
    ]
    copies = list(side_by_side(tensors, pinned=False))
    assert all(one.dtype == two.dtype and torch.equal(one, two) for one, two in zip(tensors, copies, strict=True))
    assert len({copy.untyped_storage().data_ptr() for copy in copies}) == 1
    assert copies[0].untyped_storage().nbytes() == 4 * 256


def test_the_last_of_evenly_spread_blocks_wait_and_the_first_does_not():
    assert waiting_blocks(57, 0) == [] and waiting_blocks(6, 6) == [0, 1, 2, 3, 4, 5]
    assert waiting_blocks(57, 3) == [18, 37, 56]
    spread = waiting_blocks(57, 19)
    assert len(set(spread)) == 19 and spread[-1] == 56 and {b - a for a, b in itertools.pairwise(spread)} == {3}
    assert (block_name(18, 19), block_name(19, 19)) == ("transformer_blocks.18.", "single_transformer_blocks.0.")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_moved_weight_is_the_same_weight_in_other_memory(precision):
    layer = load_transformer(PICO_FILES.transformer, torch.bfloat16, CPU, make_quantiser(precision, CPU)).get_submodule(
        "single_transformer_blocks.0.proj_mlp"
    )
    before, pointer = dequantised(layer).clone(), layer.weight.data_ptr() if precision == "no_change" else None
    layer.weight = moved(layer.weight, torch.clone)
    assert torch.equal(dequantised(layer), before) and layer.weight.data_ptr() != pointer


def test_activations_that_wait_on_the_host_change_nothing(monkeypatch):
    expected, gradients = step(*pico())
    copied = []
    original = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, *a, **k: (copied.append(self.shape), original(self, *a, **k))[1])
    found, own = step(*pico(offload=True))
    assert torch.equal(found, expected) and all(torch.equal(own[name], gradients[name]) for name in gradients)
    image, text = (2, 16, 256), (2, 32, 256)
    assert copied.count(image) == copied.count(text) == 6  # what goes into each block, once


def test_inside_a_route_the_kept_tokens_wait_on_the_host_too():
    """And only these: the tokens that were left out are one tensor for all blocks of the span, and stay."""
    outcomes, waiting = [], []
    for offload in (False, True):
        transformer, parameters = pico(offload=offload)
        router = TokenRouter(transformer, [Span(0.5, 1, 4)])
        kept = torch.arange(0, 16, 2).expand(2, -1)
        with CopyWatch() as watch, router.routed([kept]):
            prediction = predict_velocity(transformer, *inputs())
        waiting.append(watch.copied)
        prediction.square().mean().backward()
        outcomes.append((prediction.detach(), *(parameter.grad for parameter in parameters.values())))
    assert all(torch.equal(one, two) for one, two in zip(*outcomes, strict=True))
    whole, shortened = (2, 16, 256), (2, 8, 256)
    assert [waiting[1].count(size) - waiting[0].count(size) for size in (whole, shortened)] == [3, 3]  # block 1 still takes all


@pytest.mark.parametrize("option", ["blocks_to_swap", "enable_activation_offloading"])
def test_a_run_gives_the_same_bytes_with_the_option(option, pictures, tmp_path, cache):
    routes = [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": 4}]
    validation = {"num_validation_images": 1, "validation_num_inference_steps": 1}

    def trained(base: dict, training: dict) -> dict:
        data = job_data(pictures, routes=routes, validation=validation, base=base)
        data["training"] |= {"gradient_checkpointing": True, "max_train_steps": 2} | training
        return load_file(run_in_process(parse_job(data), tmp_path / str(bool(base or training)), cache)["lora"])

    on = {"blocks_to_swap": ({"blocks_to_swap": 4}, {}), "enable_activation_offloading": ({}, {option: True})}[option]
    one, two = trained({}, {}), trained(*on)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_waiting_blocks_without_checkpointing_are_refused(pictures):
    with pytest.raises(JobError, match=r"blocks_to_swap needs training\.gradient_checkpointing"):
        parse_job(job_data(pictures, base={"blocks_to_swap": 2}))
    with pytest.raises(JobError, match="enable_activation_offloading has no effect without gradient_checkpointing"):
        parse_job(job_data(pictures, training={"enable_activation_offloading": True}))


def test_more_waiting_blocks_than_there_are_is_an_error(pictures):
    data = job_data(pictures, base={"blocks_to_swap": 7}, training={"gradient_checkpointing": True})
    with pytest.raises(JobError, match="this base has 6 blocks"):
        prepare(parse_job(data))
