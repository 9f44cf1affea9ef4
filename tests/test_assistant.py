"""The assistant LoRA: as if merged while it is on, bitwise absent while it is off, and never trained nor exported."""

import contextlib
from collections.abc import Sequence

import pytest
import torch
from diffusers import FluxTransformer2DModel
from foreign_adapters import DIALECTS, change, diffusers_changes, keys, random_layers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from support import add_lora
from trainer_core.adapter.assistant import Assistant, add_assistant
from trainer_core.adapter.build import exported_parts
from trainer_core.adapter.file_factors import LoraFactors
from trainer_core.adapter.plan import plan_adapter
from trainer_core.errors import JobError
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import load_transformer, read_shape
from trainer_core.flux.modulation import keep_on_host
from trainer_core.flux.predict import predict_velocity
from trainer_core.flux.routing import TokenRouter
from trainer_core.specs.adapter import LoraSpec
from trainer_core.tread import Span

LORA = LoraSpec(lora_rank=4, flux_lora_target="all+ffs")
SHAPE = read_shape(PICO_FILES.transformer)
LAYERS = random_layers(SHAPE, True, "lora")
for parts in LAYERS.values():
    parts["up"] *= 0.005  # a change that leaves the signal alive
STRENGTH = 0.7


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """An assistant on every layer, in the original's naming, so that it must be cut and swapped."""
    path = tmp_path_factory.mktemp("assistant") / "assistant.safetensors"
    save_file(keys(DIALECTS["kohya"], LAYERS), path)
    return path


def base(dtype: torch.dtype = torch.float32) -> FluxTransformer2DModel:
    return load_transformer(PICO_FILES.transformer, dtype, torch.device("cpu"))


def merged(strength: float) -> FluxTransformer2DModel:
    transformer = base()
    changes = diffusers_changes({layer: change(parts) for layer, parts in LAYERS.items()}, SHAPE)
    for name, delta in changes.items():
        transformer.get_submodule(name).weight.data += strength * delta
    return transformer


def test_an_assistant_on_modulation_that_stays_on_the_host_meets_its_result_on_the_card():
    transformer, name = base(), "transformer_blocks.0.norm1.linear"
    keep_on_host(transformer, torch.device("meta"))  # stands for the card: any device that is not the host
    assistant = Assistant(transformer, {name: LoraFactors(torch.ones(2, SHAPE.width), torch.ones(6 * SHAPE.width, 2), 2.0)})
    with assistant.at(STRENGTH):
        assert transformer.get_submodule(name)(torch.ones(1, SHAPE.width)).device.type == "meta"


def forward(transformer: FluxTransformer2DModel) -> Tensor:
    random = torch.Generator().manual_seed(0)
    text, pooled = torch.randn(1, 8, SHAPE.t5_width, generator=random), torch.randn(1, SHAPE.clip_width, generator=random)
    x = torch.randn(1, 16, 8, 8, generator=random)
    return predict_velocity(transformer, x, torch.tensor([0.5]), text, pooled, torch.tensor([3.0]))


@torch.no_grad()
def velocity(transformer: FluxTransformer2DModel) -> Tensor:
    return forward(transformer)


def add_trained(transformer: FluxTransformer2DModel) -> dict[str, nn.Parameter]:
    """An adapter on top, as if it had been trained a little."""
    parameters = add_lora(transformer, LORA)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=random))
    return parameters


def gradients(transformer: FluxTransformer2DModel, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    for parameter in parameters.values():
        parameter.grad = None
    forward(transformer).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in parameters.items()}


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=1e-5)


def test_at_a_strength_the_base_is_as_if_the_lora_were_merged(path):
    transformer = base()
    assistant = add_assistant(transformer, path, SHAPE)
    plain = velocity(transformer)
    with assistant.at(STRENGTH):
        assisted = velocity(transformer)
    assert_close(assisted, velocity(merged(STRENGTH)))
    assert (assisted - plain).abs().max() > 0.05 * plain.abs().max()


def test_off_is_the_base_to_the_last_bit(path):
    transformer, plain = base(), velocity(base())
    assistant = add_assistant(transformer, path, SHAPE)
    assert torch.equal(velocity(transformer), plain)
    with assistant.at(1.0):
        assert not torch.equal(velocity(transformer), plain)
        with assistant.at(0.0):
            assert torch.equal(velocity(transformer), plain)
        assert assistant.strength == 1.0
    with contextlib.suppress(KeyError), assistant.at(1.0):
        raise KeyError
    assert torch.equal(velocity(transformer), plain)


def test_the_trained_adapter_learns_alone_and_as_on_a_merged_base(path):
    transformer, reference = base(), merged(STRENGTH)
    assistant = add_assistant(transformer, path, SHAPE)
    parameters, expected = add_trained(transformer), add_trained(reference)
    with assistant.at(STRENGTH):
        found = gradients(transformer, parameters)
    for name, gradient in gradients(reference, expected).items():
        assert_close(found[name], gradient)
    assert {name for name, parameter in transformer.named_parameters() if parameter.requires_grad} == parameters.keys()
    assert all("lora_" in name for name in parameters)


def test_pefts_switches_do_not_reach_the_assistant(path):
    transformer = base()
    assistant = add_assistant(transformer, path, SHAPE)
    add_trained(transformer)
    with assistant.at(STRENGTH):
        transformer.disable_adapters()
        assert_close(velocity(transformer), velocity(merged(STRENGTH)))
        transformer.enable_adapters()
        transformer.set_adapter("default")
        assert (velocity(transformer) - velocity(merged(STRENGTH))).abs().max() > 1e-2


def test_the_assistant_may_come_after_peft_too(path):
    outputs = []
    for first, second in ((add_assistant, add_trained), (add_trained, add_assistant)):
        transformer, made = base(), []
        for add in (first, second):
            made.append(add(transformer, path, SHAPE) if add is add_assistant else add(transformer))
        (assistant,) = (one for one in made if isinstance(one, Assistant))
        with assistant.at(STRENGTH):
            outputs.append(velocity(transformer))
    assert_close(*outputs)


def test_the_assistant_is_never_exported(path):
    transformer, alone = base(), base()
    assistant = add_assistant(transformer, path, SHAPE)
    add_trained(transformer)
    add_trained(alone)
    assert transformer.state_dict().keys() == alone.state_dict().keys()
    plan = plan_adapter(base(), LORA)
    with assistant.at(STRENGTH):
        exported, expected = (exported_parts(one, plan) for one in (transformer, alone))
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name][part], tensor) for name, parts in expected.items() for part, tensor in parts.items())


def test_checkpointed_gradients_are_the_same_and_a_backward_pass_outside_raises(path):
    transformer = base()
    assistant = add_assistant(transformer, path, SHAPE)
    parameters = add_trained(transformer)
    with assistant.at(STRENGTH):
        expected = gradients(transformer, parameters)
        transformer.enable_gradient_checkpointing()
        transformer.train()
        found = gradients(transformer, parameters)
        loss = forward(transformer).square().mean()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(CheckpointError):
        loss.backward()


def test_on_a_route_the_assistant_works_on_the_tokens_that_are_left(path):
    def routed(transformer: FluxTransformer2DModel, kept: Sequence[Tensor]) -> Tensor:
        with TokenRouter(transformer, [Span(0.5, 1, 4)]).routed(kept):
            return velocity(transformer)

    transformer, kept = base(), [torch.tensor([[0, 3, 5, 6, 9, 10, 12, 15]])]
    assistant = add_assistant(transformer, path, SHAPE)
    with assistant.at(STRENGTH):
        assert_close(routed(transformer, kept), routed(merged(STRENGTH), kept))


def test_it_follows_the_format_of_the_base_also_when_a_picture_comes_first(path):
    transformer = base(torch.bfloat16)
    assistant = add_assistant(transformer, path, SHAPE)
    parameters = add_trained(transformer)
    with assistant.at(STRENGTH):
        with torch.inference_mode():
            first = forward(transformer)
        found = gradients(transformer, parameters)
        again = velocity(transformer)
    assert torch.equal(first, again)
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())
    exact, rounded = merged(STRENGTH), merged(STRENGTH)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16()
    add_trained(exact)
    add_trained(rounded)
    error, of_merging = ((found - velocity(exact)).norm() for found in (again, velocity(rounded)))
    assert error < 1.2 * of_merging


class Int8Linear(nn.Module):
    """A layer as quantisation leaves it: no `weight` to merge into."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.scale = linear.weight.abs().max() / 127
        self.register_buffer("quantised", (linear.weight / self.scale).round().to(torch.int8))
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.quantised * self.scale, self.bias)


def test_a_quantised_layer_is_assisted_all_the_same(path):
    name = "transformer_blocks.0.attn.to_q"
    transformer = base()
    transformer.set_submodule(name, Int8Linear(transformer.get_submodule(name)))
    layer, x = transformer.get_submodule(name), torch.randn(3, SHAPE.width)
    plain = layer(x)
    assistant = add_assistant(transformer, path, SHAPE)
    qkv = change(LAYERS["double_blocks.0.img_attn.qkv"])
    with assistant.at(STRENGTH):
        assert_close(layer(x), plain + STRENGTH * x @ qkv[: SHAPE.width].T)
    assert torch.equal(layer(x), plain)


def test_only_a_lora_can_assist(tmp_path):
    file = tmp_path / "loha.safetensors"
    save_file(keys(DIALECTS["lycoris"], random_layers(SHAPE, False, "loha")), file)
    with pytest.raises(JobError, match=r"base\.assistant_lora_path: .* is a loha; an assistant must be a LoRA"):
        add_assistant(base(), file, SHAPE)
