"""What a step leaves out: recomputing more than memory asks for, going back further than the adapter, anything weight-sized."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from support import add_lora, job_data
from trainer_core.context import RunContext
from trainer_core.events import EventLog
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import load_transformer
from trainer_core.flux.predict import predict_velocity
from trainer_core.flux.recompute import recompute_layers
from trainer_core.job_file import parse_job
from trainer_core.plan.phases import GIB, transformer_phases
from trainer_core.plan.plan import describe, make_plan, ready_memory
from trainer_core.plan.recomputing import USABLE, as_few_recomputed
from trainer_core.plan.room import Room
from trainer_core.run_dir import RunDir
from trainer_core.setup import Setup, prepare
from trainer_core.specs.adapter import LoraSpec
from trainer_core.train import run
from trainer_core.writing import read_json

NUM_BLOCKS = 6  # of pico: two double ones, four single ones


def pico() -> FluxTransformer2DModel:
    return load_transformer(PICO_FILES.transformer, torch.float32, torch.device("cpu")).train()


def blocks_of(model: FluxTransformer2DModel) -> list[torch.nn.Module]:
    return [*model.transformer_blocks, *model.single_transformer_blocks]


def loss_of(model: FluxTransformer2DModel) -> Tensor:
    """24 tokens of picture and 5 of text: lengths that no weight has."""
    random = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 16, 8, 12, generator=random), torch.randn(1, 5, model.config.joint_attention_dim, generator=random)
    pooled = torch.randn(1, model.config.pooled_projection_dim, generator=random)
    return predict_velocity(model, x, torch.tensor([0.5]), text, pooled, torch.tensor([1.0])).square().mean()


def test_backward_ends_at_the_first_block_with_an_adapter_and_nothing_before_it_is_recomputed():
    model = pico()
    add_lora(model, LoraSpec(lora_rank=2, lora_blocks="single 1-3"))
    recompute_layers(model, range(NUM_BLOCKS))
    calls, needs_graph = [0] * NUM_BLOCKS, {}
    for number, block in enumerate(blocks_of(model)):

        def called(*_: Any, number: int = number) -> None:
            calls[number] += 1

        def passed(_: Any, inputs: Any, output: tuple[Tensor, Tensor], number: int = number) -> None:
            needs_graph[number] = any(tensor.requires_grad for tensor in output)

        block.attn.register_forward_hook(called)  # a repetition ends before the block does, once all is there
        block.register_forward_hook(passed)
    loss_of(model).backward()
    assert calls == [1, 1, 1, 2, 2, 2]
    assert needs_graph == {0: False, 1: False, 2: False, 3: True, 4: True, 5: True}


def test_what_goes_into_the_first_block_requires_no_gradient_under_checkpointing():
    model, met = pico(), []
    add_lora(model, LoraSpec(lora_rank=2, flux_lora_target="all+ffs"))
    recompute_layers(model, range(NUM_BLOCKS))
    hook = blocks_of(model)[0].register_forward_pre_hook(lambda _, inputs: met.append(inputs))
    loss_of(model).backward()
    hook.remove()
    tensors = [tensor for inputs in met for tensor in tree_leaves(inputs) if isinstance(tensor, Tensor)]
    assert len(tensors) == 2 * 5, "picture, text, conditioning and two rotary tables, in the pass and its repetition"
    assert not any(tensor.requires_grad for tensor in tensors)
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "lora" not in name)


class Made(TorchDispatchMode):
    """The sizes of all tensors that are made anew, transposed ones as their storage lies."""

    def __init__(self, known: set[int]):
        super().__init__()
        self.sizes: set[tuple[int, ...]] = set()
        self._known = known

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self._known:
                self.sizes.add(tuple(sorted(tensor.shape)))
        return result


@contextmanager
def weight_sized(model: FluxTransformer2DModel) -> Iterator[set[tuple[int, ...]]]:
    """Collects the sizes of what is made in here, if a layer that carries an adapter has a weight of that size."""
    layers = [layer for layer in model.modules() if hasattr(layer, "lora_A")]
    sizes = {tuple(sorted(layer.base_layer.weight.shape)) for layer in layers}
    found: set[tuple[int, ...]] = set()
    with Made({parameter.untyped_storage().data_ptr() for parameter in model.parameters()}) as made:
        yield found
    found |= made.sizes & sizes


def test_no_step_makes_anything_of_the_size_of_a_weight():
    """A trainer that merges the two thin matrices in each step, or their gradients, loses two fifths of its time."""
    model = pico()
    parameters = list(add_lora(model, LoraSpec(lora_rank=2, flux_lora_target="all+ffs")).values())
    recompute_layers(model, range(NUM_BLOCKS))
    optimizer = torch.optim.AdamW(parameters)
    with weight_sized(model) as found:
        loss_of(model).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    assert not found
    layer = model.transformer_blocks[0].attn.to_q
    with weight_sized(model) as found:
        layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert found, "a merged product would have been seen"


def run_with(setup: Setup, num_recomputed: int, out: Path, cache: Path) -> dict:
    run_dir = RunDir(out)
    run_dir.root.mkdir(parents=True)
    events = EventLog(run_dir.events_path)
    try:
        return run(replace(setup, num_recomputed=num_recomputed), RunContext(run_dir, cache, events, lambda: False))
    finally:
        events.close()


def test_however_many_blocks_are_recomputed_the_numbers_are_the_same_to_the_bit(tmp_path, pictures, cache):
    training = {"gradient_checkpointing": True, "max_train_steps": 3}
    setup = prepare(parse_job(job_data(pictures, lora={"lora_save_precision": "fp32"}, training=training)))
    found = []
    for count in (0, 3, NUM_BLOCKS):
        result = run_with(setup, count, tmp_path / str(count), cache)
        manifest = read_json(RunDir(Path(result["run_dir"])).manifest_path)
        assert manifest["recomputed_blocks"] == list(range(count))
        found.append((result["losses"], {name: tensor.tolist() for name, tensor in load_file(result["lora"]).items()}))
    assert found[0] == found[1] == found[2]


@pytest.fixture(scope="module")
def large(pictures) -> Setup:
    """A run on pico that needs some gigabytes where nothing is recomputed."""
    data = job_data(pictures, training={"gradient_checkpointing": True, "train_batch_size": 16})
    data["datasets"][0]["resolution"] = 512
    return prepare(parse_job(data))


def test_as_few_blocks_are_recomputed_as_the_memory_there_is_asks_for(large):
    def needed(count: int) -> int:
        phase = next(p for p in transformer_phases(replace(large, num_recomputed=count)) if p.name == "train")
        return phase.host + phase.mapped

    assert sorted(map(needed, range(NUM_BLOCKS + 1)), reverse=True) == list(map(needed, range(NUM_BLOCKS + 1)))
    for count in range(NUM_BLOCKS + 1):
        just_enough = Room(int(needed(count) / USABLE) + 1, 0)
        assert as_few_recomputed(large, just_enough).recomputed_layers == tuple(range(count))
    assert as_few_recomputed(large, Room(GIB // 2, 0)).recomputed_layers == tuple(range(NUM_BLOCKS)), "less does not help"
    plan = make_plan(large, Room(int(needed(3) / USABLE) + 1, 0))
    assert plan.recomputed == (0, 1, 2) and "blocks recomputed in the backward pass: 3" in describe(plan)


def test_a_number_that_is_given_is_kept_and_what_saves_by_recomputing_recomputes_all(large):
    room = Room(1 << 40, 1 << 40)

    def chosen(setup: Setup, **training: Any) -> tuple[int, ...]:
        changed = setup.job.training.model_copy(update=training)
        return as_few_recomputed(replace(setup, job=setup.job.model_copy(update={"training": changed})), room).recomputed_layers

    assert chosen(large) == ()
    assert chosen(large, gradient_checkpointing_interval=2) == (0, 2, 4)
    assert chosen(large, enable_activation_offloading=True) == tuple(range(NUM_BLOCKS))
    assert chosen(large, gradient_checkpointing=False) == ()
    swapped = large.job.base.model_copy(update={"blocks_to_swap": 3})
    swapping = replace(large, job=large.job.model_copy(update={"base": swapped}))
    assert chosen(swapping) == tuple(range(NUM_BLOCKS))


def test_a_run_that_is_surely_small_recomputes_nothing(pictures):
    setup, plan = ready_memory(prepare(parse_job(job_data(pictures, training={"gradient_checkpointing": True}))))
    assert plan is None and setup.recomputed_layers == ()
