"""TREAD on what else a run may have: a quantised base with our adapters on it, and two processes that train together.

The adapters are a little off their start, so that every one of their weights has a gradient.
"""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from test_tread import SEAM, TOKENS, build, close, draws, generators, gradients, inputs, removed, routed, run
from torch import multiprocessing, nn
from torch.nn import Parameter
from two_processes import ADAPTERS, add_started, process, ready, trained

from support import job_data, run_in_process
from trainer_core.flux.quantize import make_quantiser
from trainer_core.flux.recompute import recompute_blocks
from trainer_core.flux.routing import TokenRouter
from trainer_core.job_file import parse_job

BASES = pytest.mark.parametrize("precision", ["nf4-bnb", "int8-quanto"])
KINDS = pytest.mark.parametrize("kind", list(ADAPTERS))


def quantised(precision: str, kind: str) -> tuple[FluxTransformer2DModel, dict[str, Parameter]]:
    """A base whose blocks' linear layers are quantised, with an adapter on it; its parameters."""
    model = build()
    quantiser = make_quantiser(precision, torch.device("cpu"))
    for name, layer in [entry for entry in model.named_modules() if "blocks." in entry[0]]:
        if quantiser.takes(name, layer):
            model.set_submodule(name, quantiser.quantise(layer))
    return model.train(), add_started(model, kind)


# Quantised bases


@BASES
def test_every_linear_layer_of_the_blocks_is_quantised(precision):
    """A guard of these tests: what they call a quantised base is one."""
    from bitsandbytes.nn import Linear4bit
    from optimum.quanto import QLinear

    model, _ = quantised(precision, "lora")
    plain = [name for name, layer in model.named_modules() if type(layer) is nn.Linear and "lora_" not in name]
    assert plain and not any("blocks." in name for name in plain)
    for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
        layer = block.attn.to_q.base_layer
        if precision == "nf4-bnb":
            assert isinstance(layer, Linear4bit) and layer.weight.quant_state.nested, "the scales are quantised too"
        else:
            assert isinstance(layer, QLinear)


@KINDS
@BASES
def test_on_a_quantised_base_a_route_that_drops_nothing_changes_nothing(precision, kind):
    (model, _), data = quantised(precision, kind), inputs()
    plain = run(model, data)
    everything = torch.arange(TOKENS).expand(2, -1)
    shuffled = torch.stack([torch.randperm(TOKENS, generator=random) for random in generators(7, 8)])
    router = TokenRouter(model, [SEAM])
    for ids_BK in (everything, shuffled):
        with router.routed([ids_BK]):
            close(run(model, data), plain)


@KINDS
@BASES
def test_on_a_quantised_base_a_route_is_a_forward_pass_without_the_tokens(precision, kind):
    """Over the seam, with other tokens for each sample, in values and in the gradients of adapter and image tokens."""
    kept, outcomes = draws([SEAM], 0, 1), []
    for forward in (routed, removed):
        (model, _), data = quantised(precision, kind), inputs()
        data["hidden_states"].requires_grad_()
        output = forward(model, data, [SEAM], kept)
        output.square().mean().backward()
        outcomes.append({"output": output.detach(), "tokens": data["hidden_states"].grad} | gradients(model))
    ours, theirs = outcomes
    assert (ours["tokens"].abs().sum(dim=2) > 0).all(), "every image token has a gradient"
    for name, tensor in ours.items():
        assert tensor.abs().sum() > 0, name
        close(tensor, theirs[name])


@KINDS
@BASES
def test_on_a_quantised_base_checkpointed_equals_unchecked(precision, kind):
    data, kept, outcomes = inputs(), draws([SEAM], 0, 1), []
    for interval in (0, 1, 2):
        model, parameters = quantised(precision, kind)
        if interval:
            recompute_blocks(model, interval)
        output = routed(model, data, [SEAM], kept)
        output.square().mean().backward()
        outcomes.append({"output": output.detach()} | gradients(model))
        assert len(outcomes[-1]) == 1 + len(parameters)
    plain, *checkpointed = outcomes
    for found in checkpointed:
        for name, tensor in plain.items():
            close(found[name], tensor)


@KINDS
@BASES
def test_on_a_quantised_base_the_loss_falls_with_routes(precision, kind):
    (model, parameters), data = quantised(precision, kind), inputs()
    recompute_blocks(model, 1)
    router, losses = TokenRouter(model, [SEAM]), []
    (random,) = generators(13)
    target = torch.randn(data["hidden_states"].shape, generator=random)
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    for step in range(12):
        with router.routed(draws([SEAM], 10 * step, 10 * step + 1)):
            loss = (run(model, data) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


@BASES
def test_pictures_in_between_leave_the_gradients_as_they_were(precision):
    """bitsandbytes repacks a layer that works without gradients on some CPUs, and the repacked one has none."""
    data, kept = inputs(), draws([SEAM], 0, 1)
    model, _ = quantised(precision, "lora")
    router, found = TokenRouter(model, [SEAM]), []
    for _ in range(2):
        model.train()
        with router.routed(kept):
            run(model, data).square().mean().backward()
        found.append(gradients(model))
        model.eval()
        with torch.no_grad():
            run(model, data)
    before, after = found
    assert all(torch.equal(gradient, after[name]) for name, gradient in before.items())


def test_a_quantised_run_with_routes_and_pictures_trains_to_its_end(pictures, tmp_path, cache):
    data = job_data(
        pictures,
        base={"base_model_precision": "nf4-bnb"},
        routes=[{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -2}],
        validation={"num_validation_images": 1, "validation_num_inference_steps": 1, "validation_step_interval": 2},
        training={"max_train_steps": 4, "gradient_checkpointing": True},
    )
    result = run_in_process(parse_job(data), tmp_path, cache)
    assert len(result["losses"]) == 4 and result["routes"][0]["dropped_tokens"] > 0


# Two processes


def test_two_processes_train_with_routes_as_one_with_both_samples_does(tmp_path):
    """The same parameters in both, bit for bit, and the gradients of one process that has both samples in a batch.

    This process is the first of the two, which saves the imports of one more."""
    other = multiprocessing.get_context("spawn").Process(target=process, args=(1, tmp_path))
    other.start()
    process(0, tmp_path)
    other.join()
    assert other.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    together = trained(*ready(), [0, 1])
    *gradients_of_steps, last = zip(first, second, together, strict=True)
    for one, two, expected in gradients_of_steps:
        for name, gradient in expected.items():
            assert torch.equal(one[name], two[name]), name
            torch.testing.assert_close(one[name], gradient, atol=1e-6, rtol=0)
    assert all(torch.equal(tensor, last[1][name]) for name, tensor in last[0].items())
    for rank in (0, 1):  # a base of which each keeps a part (FSDP2) gives what a whole one gives, with routes and checkpointing
        whole, shared = torch.load(tmp_path / f"shared-{rank}.pt", weights_only=True).values()
        assert shared["size"] < 0.6 * whole["size"]
        for one, two in zip(whole["steps"], shared["steps"], strict=True):
            assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
