"""Hiding the padding of the T5 prompt: bool masks remove it from attention, float ones only weigh words a little more."""

import logging

import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from torch import Tensor

from support import job_data
from trainer_core.flux.load import FluxShape, config
from trainer_core.flux.predict import joint_mask, predict_velocity
from trainer_core.flux.routing import TokenRouter
from trainer_core.job_file import parse_job
from trainer_core.objective import attention_mask
from trainer_core.setup import prepare
from trainer_core.specs.flow import FlowSpec
from trainer_core.tread import Span, draw_routes
from trainer_core.validation.sample import Encoded, SamplerSettings, sample_latents, together
from trainer_core.validation.shots import Canvas

SHAPE = FluxShape(num_double=2, num_single=3, width=128, in_channels=64, t5_width=16, clip_width=8, guidance=False)
WORDS = torch.tensor([[True] * 3 + [False] * 4, [True] * 6 + [False]])
MASKED = FlowSpec(flux_attention_masked_training=True)
ADDITIVE = FlowSpec(flux_attention_masked_training=True, t5_mask_mode="additive")


def build() -> FluxTransformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return FluxTransformer2DModel(**config(SHAPE)).requires_grad_(False).eval()


def inputs() -> list[Tensor]:
    """Latent, sigma, text, pooled and guidance of two samples."""
    random = torch.Generator().manual_seed(3)
    shapes = ((2, 16, 8, 12), (2, 7, 16), (2, 8))
    latent, text, pooled = (torch.randn(shape, generator=random) for shape in shapes)
    return [latent, torch.tensor([0.2, 0.9]), text, pooled, torch.ones(2)]


def with_other_padding(data: list[Tensor]) -> list[Tensor]:
    other = list(data)
    other[2] = torch.where(
        WORDS[..., None], data[2], 5 * torch.randn(data[2].shape, generator=torch.Generator().manual_seed(9))
    )
    return other


def test_hidden_padding_may_be_anything():
    model = build()
    outputs = [
        predict_velocity(model, *data, attention_mask(MASKED, WORDS)) for data in (inputs(), with_other_padding(inputs()))
    ]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("spec", [FlowSpec(), ADDITIVE], ids=["not masked", "additive"])
def test_padding_that_is_not_hidden_is_seen(spec):
    model = build()
    outputs = [predict_velocity(model, *data, attention_mask(spec, WORDS)) for data in (inputs(), with_other_padding(inputs()))]
    assert (outputs[0] - outputs[1]).abs().max() > 0.01


def test_hidden_padding_is_padding_cut_off():
    model, data = build(), inputs()
    hidden = predict_velocity(model, *data, WORDS)
    for sample, length in enumerate((3, 6)):
        alone = [value[sample : sample + 1] for value in data]
        alone[2] = alone[2][:, :length]
        torch.testing.assert_close(hidden[sample : sample + 1], predict_velocity(model, *alone), atol=1e-5, rtol=1e-5)


def test_additive_words_and_image_tokens_weigh_e_times_as_much():
    """The bonus of 1 for all keys cancels out in attention, so only padding differs from no mask."""
    model, data = build(), inputs()
    mask = joint_mask(attention_mask(ADDITIVE, WORDS), 24)
    assert mask.shape == (2, 1, 1, 7 + 24) and mask.dtype == torch.float32
    assert mask[0, 0, 0].tolist() == [1.0] * 3 + [0.0] * 4 + [1.0] * 24
    everything = predict_velocity(model, *data, torch.ones(2, 7))
    torch.testing.assert_close(everything, predict_velocity(model, *data), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(predict_velocity(model, *data, attention_mask(ADDITIVE, WORDS)), everything, atol=1e-3)


@pytest.mark.parametrize("spec", [MASKED, ADDITIVE], ids=["mask", "additive"])
def test_bfloat16_takes_both_kinds(spec):
    ours = predict_velocity(build().bfloat16(), *inputs(), attention_mask(spec, WORDS))
    theirs = predict_velocity(build(), *inputs(), attention_mask(spec, WORDS))
    torch.testing.assert_close(ours, theirs, atol=0.06, rtol=0.06)


@pytest.mark.parametrize("span", [Span(0.5, 1, 3), Span(0.5, 0, 1), Span(0.5, 2, 4)], ids=str)
@pytest.mark.parametrize("spec", [MASKED, ADDITIVE], ids=["mask", "additive"])
def test_routes_and_checkpointing_keep_the_mask(span, spec):
    """Routed, the padding stays hidden; checkpointed, the backward pass meets the same mask. A bonus stays what it was."""
    model, outcomes = build(), []
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    router, kept = TokenRouter(model, [span]), draw_routes([span], 24, None, 0, 0, range(2))
    for data, checkpointed in ((inputs(), False), (inputs(), True), (with_other_padding(inputs()), True)):
        if checkpointed:
            model.train().enable_gradient_checkpointing()
        with router.routed(kept):
            output = predict_velocity(model, *data, attention_mask(spec, WORDS))
        output.square().mean().backward()
        outcomes.append((output.detach(), [p.grad for p in model.parameters() if p.requires_grad]))
        model.zero_grad(set_to_none=True)
    (plain, gradients), (again, other_gradients), (padded, _) = outcomes
    torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(other_gradients, gradients, atol=1e-6, rtol=1e-5)
    assert torch.equal(padded, again) == (spec is MASKED)
    unrouted = predict_velocity(model, *inputs(), attention_mask(spec, WORDS))
    assert not torch.allclose(unrouted, plain, atol=1e-4), "the route is taken"


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_samples_hide_the_padding_too(cfg):
    model, settings = build(), SamplerSettings(2, 1.0, 1.0, cfg)

    def pictures(data: list[Tensor], spec: FlowSpec) -> Tensor:
        mask = attention_mask(spec, WORDS)
        captions = [Encoded(data[2][[b]], data[3][[b]], None if mask is None else mask[[b]]) for b in range(2)]
        found = sample_latents(model, captions, [captions[1]] * 2, settings, Canvas(64, 64, 0))
        assert found is not None
        return found

    both = inputs(), with_other_padding(inputs())
    assert torch.equal(*(pictures(data, MASKED) for data in both))
    assert not torch.allclose(*(pictures(data, FlowSpec()) for data in both), atol=1e-3)


def test_captions_are_batched_with_their_masks():
    one, other = (Encoded(torch.zeros(1, 7, 16), torch.zeros(1, 8), WORDS[[b]]) for b in range(2))
    assert torch.equal(together([one, other]).text_mask_BL, WORDS)
    assert together([Encoded(one.text_BLD, one.pooled_BP)] * 2).text_mask_BL is None


def test_a_masked_job_says_that_comfyui_does_not_mask(pictures, caplog):
    with caplog.at_level(logging.WARNING):
        prepare(parse_job(job_data(pictures)))
        assert not caplog.records
        prepare(parse_job(job_data(pictures, flow={"flux_attention_masked_training": True})))
    assert "ComfyUI's own sampler does not hide it" in caplog.text
