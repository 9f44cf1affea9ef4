"""Regularisation: on these pictures the adapter learns to say what the base says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_masks import left_half, masks_for

from support import add_lora, job_data, run_in_process
from trainer_core.adapter.switch import adapter_off
from trainer_core.data.batches import Batch
from trainer_core.errors import JobError, StopRequested
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import load_transformer
from trainer_core.flux.predict import predict_velocity
from trainer_core.flux.routing import TokenRouter
from trainer_core.job_file import parse_job
from trainer_core.objective import Objective
from trainer_core.setup import prepare
from trainer_core.specs.adapter import LoraSpec
from trainer_core.specs.flow import FlowSpec
from trainer_core.step import flow_loss
from trainer_core.tread import Span

CPU = torch.device("cpu")
LAYERS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.attn.to_v")
LORA = LoraSpec(lora_rank=4, flux_lora_target="custom", peft_lora_target_modules=LAYERS)
OBJECTIVE = Objective(FlowSpec(flux_guidance_mode="random-range", input_perturbation=0.2), torch.float32, 3)


@pytest.fixture(scope="module")
def adapted():
    """pico with a LoRA that has moved."""
    transformer = load_transformer(PICO_FILES.transformer, torch.float32, CPU)
    parameters = add_lora(transformer, LORA)
    random = torch.Generator().manual_seed(0)
    for name, parameter in parameters.items():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
    return transformer.train()


def make_batch(transformer, regularised: tuple[int, ...], size: int = 3) -> Batch:
    random = torch.Generator().manual_seed(1)
    config = transformer.config
    return Batch(
        latent_BCHW=torch.randn(size, 16, 8, 6, generator=random),
        text_BLD=torch.randn(size, 5, config.joint_attention_dim, generator=random),
        text_mask_BL=torch.ones(size, 5, dtype=torch.bool),
        pooled_BP=torch.randn(size, config.pooled_projection_dim, generator=random),
        names=("",) * size,
        regularised=regularised,
    )


def by_hand(transformer, batch: Batch, *, step: int, first: int) -> torch.Tensor:
    """The loss of every sample as if each was a regularisation one."""
    draw = OBJECTIVE.draw(batch.latent_BCHW, step, first)
    sigma = draw.sigma_B.view(-1, 1, 1, 1)
    noisy = (1 - sigma) * batch.latent_BCHW + sigma * draw.input_noise_BCHW
    inputs = (noisy, draw.sigma_B, batch.text_BLD, batch.pooled_BP, draw.guidance_B)
    with torch.no_grad():
        ours = predict_velocity(transformer, *inputs)
        with adapter_off(transformer):
            base = predict_velocity(transformer, *inputs)
    return (ours - base).square().mean(dim=(1, 2, 3))


def test_each_sample_of_a_batch_has_its_own_target(adapted):
    router = TokenRouter(adapted, [])
    mixed, plain = (flow_loss(adapted, make_batch(adapted, r), OBJECTIVE, router, step=4, first=2) for r in ((0, 2), ()))
    expected = by_hand(adapted, make_batch(adapted, ()), step=4, first=2)
    assert (expected > 1e-4).all()
    torch.testing.assert_close(mixed.losses_B[[0, 2]], expected[[0, 2]], rtol=1e-4, atol=1e-6)
    assert mixed.losses_B[1] == plain.losses_B[1] and torch.equal(mixed.sigma_B, plain.sigma_B)


def test_the_base_is_asked_with_the_same_sigma_and_latent_and_without_a_gradient(adapted):
    asked = []

    def note(module, args, kwargs):
        asked.append((kwargs["timestep"].clone(), kwargs["hidden_states"].clone(), torch.is_grad_enabled()))

    handle = adapted.register_forward_pre_hook(note, with_kwargs=True)
    flow_loss(adapted, make_batch(adapted, (1,)), OBJECTIVE, TokenRouter(adapted, []), step=0, first=0)
    handle.remove()
    (base_sigma, base_latent, base_grad), (sigma, latent, grad) = asked
    assert torch.equal(base_sigma, sigma[[1]]) and torch.equal(base_latent, latent[[1]])
    assert (base_grad, grad) == (False, True)


def test_the_adapter_is_on_and_trainable_again_afterwards(adapted):
    trainable = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    outcome = flow_loss(adapted, make_batch(adapted, (0, 1, 2)), OBJECTIVE, TokenRouter(adapted, []), step=0, first=0)
    assert outcome.losses_B.requires_grad
    assert [name for name, parameter in adapted.named_parameters() if parameter.requires_grad] == trainable
    with pytest.raises(KeyError), adapter_off(adapted):
        raise KeyError
    assert [name for name, parameter in adapted.named_parameters() if parameter.requires_grad] == trainable


def test_the_base_takes_no_route():
    """With an adapter that says nothing, the routed model differs from the whole base, but not from itself."""
    transformer = load_transformer(PICO_FILES.transformer, torch.float32, CPU)
    add_lora(transformer, LORA)
    batch = make_batch(transformer, (0, 1, 2))
    router = TokenRouter(transformer, [Span(0.5, 1, 4)])
    routed = flow_loss(transformer, batch, OBJECTIVE, router, step=0, first=0)
    router.spans = (Span(0.5, 1, 4, until_step=0),)
    whole = flow_loss(transformer, batch, OBJECTIVE, router, step=0, first=0)
    assert (routed.losses_B > 0).all() and routed.dropped == (3 * 6,)
    assert whole.losses_B.tolist() == [0, 0, 0] and whole.dropped == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_that_says_nothing_has_nothing_to_learn(dtype):
    transformer = load_transformer(PICO_FILES.transformer, dtype, CPU)
    parameters = add_lora(transformer, LORA)
    outcome = flow_loss(
        transformer, make_batch(transformer, (0, 1, 2)), OBJECTIVE, TokenRouter(transformer, []), step=0, first=0
    )
    assert outcome.losses_B.tolist() == [0, 0, 0]
    outcome.losses_B.sum().backward()
    assert not any(parameter.grad.any() for parameter in parameters.values())


def test_a_job_of_nothing_but_regularisation_is_refused(pictures):
    dataset = {"instance_data_dir": str(pictures), "is_regularisation_data": True}
    with pytest.raises(JobError, match="the adapter would learn nothing; add pictures to train on"):
        prepare(parse_job(job_data(pictures, datasets=[dataset])))


def gradients(transformer, *parts: Batch) -> dict[str, torch.Tensor]:
    """What one step over these batches leaves in the adapter."""
    first, router = 0, TokenRouter(transformer, [])
    for batch in parts:
        flow_loss(transformer, batch, OBJECTIVE, router, step=0, first=first).losses_B.sum().backward()
        first += len(batch.names)
    found = {name: parameter.grad for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    transformer.zero_grad(set_to_none=True)
    return found


def test_accumulation_equals_the_large_batch_with_masks_and_regularisation(adapted):
    weights = torch.linspace(0, 2, 8 * 6).view(1, 8, 6).repeat(5, 1, 1)
    large = replace(make_batch(adapted, (1, 3), size=5), weight_BHW=weights, mask_BHW=weights)
    fields = ("latent_BCHW", "text_BLD", "text_mask_BL", "pooled_BP", "names", "weight_BHW", "mask_BHW")

    def part(start: int, end: int) -> Batch:
        rows = {name: getattr(large, name)[start:end] for name in fields}
        return replace(large, **rows, regularised=tuple(r - start for r in large.regularised if start <= r < end))

    together, apart = gradients(adapted, large), gradients(adapted, part(0, 3), part(3, 4), part(4, 5))
    assert all(gradient.any() for gradient in together.values())
    for name, gradient in together.items():
        torch.testing.assert_close(apart[name], gradient, rtol=1e-4, atol=1e-6)


def test_with_masks_and_regularisation_resuming_is_exact(tmp_path, pictures, cache):
    masks = masks_for(pictures, tmp_path / "masks", left_half)
    datasets = [
        {"id": "masked", "instance_data_dir": str(pictures), "mask_data_dir": str(masks)},
        {"id": "regular", "instance_data_dir": str(pictures), "is_regularisation_data": True},
    ]
    routes = [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -2, "anneal_from": 0.5}]
    job = parse_job(job_data(pictures, datasets=datasets, routes=routes, flow={"flux_attention_masked_training": True}))
    straight = run_in_process(job, tmp_path / "straight", cache)
    with pytest.raises(StopRequested):
        run_in_process(job, tmp_path / "resumed", cache, stop_before=2)
    resumed = run_in_process(job, tmp_path / "resumed", cache)
    assert resumed["losses"] == straight["losses"]
    assert Path(resumed["lora"]).read_bytes() == Path(straight["lora"]).read_bytes()
