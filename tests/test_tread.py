"""TREAD: which tokens a route takes out, and that the model with routes is the model without these tokens.

The reference is `removed`, a forward pass by hand that runs each sample alone and really leaves the tokens out. It uses
diffusers' blocks and rotary tables as they are, and none of our gathering.
"""

import gc
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer_core import tread
from trainer_core.flux.latents import image_ids, text_ids
from trainer_core.flux.load import FluxShape, config
from trainer_core.flux.routing import TokenRouter
from trainer_core.tread import Span

SHAPE = FluxShape(num_double=2, num_single=4, width=128, in_channels=64, t5_width=16, clip_width=8, guidance=False)
TEXT, TOKENS, LAYERS = 5, 24, 6
SEAM, EARLY, LATE = Span(0.5, 1, 4), Span(0.5, 0, 1), Span(0.25, 3, 5)
TEXT_MASK = torch.tensor([[1] * 3 + [0] * 2 + [1] * TOKENS, [1] * 5 + [1] * TOKENS], dtype=torch.bool)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draws(spans: Sequence[Span], *seeds: int) -> list[Tensor]:
    """Kept tokens for each span, each sample from a seed of its own."""
    return [
        tread.draw_kept(TOKENS, span.ratio, generators(*(100 * number + seed for seed in seeds)))
        for number, span in enumerate(spans)
    ]


def build() -> FluxTransformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return FluxTransformer2DModel(**config(SHAPE)).requires_grad_(False).eval()


def add_lora(model: FluxTransformer2DModel) -> None:
    """A LoRA that is not at its start, so that every one of its weights has a gradient."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)


def inputs(batch: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    (random,) = generators(3)
    return {
        "hidden_states": torch.randn(2, TOKENS, 64, generator=random)[:batch].to(dtype),
        "encoder_hidden_states": torch.randn(2, TEXT, 16, generator=random)[:batch].to(dtype),
        "pooled_projections": torch.randn(2, 8, generator=random)[:batch].to(dtype),
        "timestep": torch.tensor([0.2, 0.9])[:batch],
        "img_ids": image_ids(8, 12),
        "txt_ids": text_ids(TEXT),
    }


def one(data: dict[str, Tensor], sample: int) -> dict[str, Tensor]:
    return {name: value if name.endswith("ids") else value[sample : sample + 1] for name, value in data.items()}


def run(model: FluxTransformer2DModel, data: dict[str, Tensor], **more: object) -> Tensor:
    return model(**data, **more, return_dict=False)[0]


def routed(model: FluxTransformer2DModel, data: dict[str, Tensor], spans: Sequence[Span], kept: Sequence[Tensor]) -> Tensor:
    with TokenRouter(model, spans).routed(kept):
        return run(model, data)


def removed(
    model: FluxTransformer2DModel,
    data: dict[str, Tensor],
    spans: Sequence[Span],
    kept: Sequence[Tensor],
    mask: Tensor | None = None,
) -> Tensor:
    """The same by hand, each sample alone, on a sequence that is really shorter."""
    rows = [
        _removed(model, one(data, b), spans, [ids[b] for ids in kept], None if mask is None else mask[b])
        for b in range(len(data["hidden_states"]))
    ]
    return torch.cat(rows)


def _removed(
    model: FluxTransformer2DModel, data: dict[str, Tensor], spans: Sequence[Span], kept: Sequence[Tensor], mask: Tensor | None
) -> Tensor:
    image, text = model.x_embedder(data["hidden_states"]), model.context_embedder(data["encoder_hidden_states"])
    signal = model.time_text_embed(data["timestep"].to(image.dtype) * 1000, data["pooled_projections"])
    for layer, block in enumerate([*model.transformer_blocks, *model.single_transformer_blocks]):
        inside = [ids for span, ids in zip(spans, kept, strict=True) if span.first <= layer <= span.last]
        ids = inside[0] if inside else torch.arange(image.shape[1])
        tables = model.pos_embed(torch.cat([data["txt_ids"], data["img_ids"][ids]]))
        seen = None if mask is None else torch.cat([mask[:TEXT], mask[TEXT:][ids]])[None, None, None]
        text, part = block(image[:, ids], text, signal, tables, {"attention_mask": seen})
        image = image.clone()
        image[:, ids] = part
    return model.proj_out(model.norm_out(image, signal))


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def gradients(model: FluxTransformer2DModel) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad(set_to_none=True)
    return found


# The hand-written pass itself


def test_the_reference_without_routes_is_the_model():
    model, data = build(), inputs()
    close(removed(model, data, [], []), run(model, data))


# Identity


@pytest.mark.parametrize("span", [Span(0, 0, 5), Span(0, 0, 1), Span(0, 2, 3), Span(0, 1, 4), Span(0, 3, 3)], ids=str)
def test_a_route_that_drops_nothing_changes_nothing(span):
    model, data = build(), inputs()
    plain = run(model, data)
    close(routed(model, data, [span], draws([span], 0, 1)), plain)


@pytest.mark.parametrize("span", [Span(0, 0, 5), Span(0, 0, 1), Span(0, 2, 3), Span(0, 1, 4)], ids=str)
def test_all_tokens_in_another_order_give_the_same_output(span):
    model, data = build(), inputs()
    plain = run(model, data)
    shuffled = torch.stack([torch.randperm(TOKENS, generator=random) for random in generators(7, 8)])
    close(routed(model, data, [span], [shuffled]), plain)


def test_the_same_kept_tokens_in_another_order_give_the_same_output():
    data, (kept,) = inputs(), draws([SEAM], 0, 1)
    shuffled = kept[:, torch.randperm(kept.shape[1], generator=generators(9)[0])]
    assert not torch.equal(kept, shuffled)
    close(routed(build(), data, [SEAM], [shuffled]), routed(build(), data, [SEAM], [kept]))


def test_outside_of_routed_nothing_changes_by_a_single_bit():
    model, data = build(), inputs()
    plain = run(model, data)
    router, kept = TokenRouter(model, [SEAM]), draws([SEAM], 0, 1)
    assert torch.equal(run(model, data), plain)
    with router.routed(kept):
        assert not torch.allclose(run(model, data), plain)
    assert torch.equal(run(model, data), plain)
    with pytest.raises(KeyError), router.routed(kept):
        raise KeyError
    assert torch.equal(run(model, data), plain)


def test_a_route_that_is_over_is_no_route_by_a_single_bit():
    data, kept = inputs(), draws([EARLY, LATE], 0, 1)
    model = build()
    router = TokenRouter(model, [EARLY, LATE])
    plain = run(model, data)
    with router.routed([None, None]):
        assert torch.equal(run(model, data), plain)
    with router.routed([None, kept[1]]):
        one_of_two = run(model, data)
    assert torch.equal(one_of_two, routed(build(), data, [LATE], kept[1:])) and not torch.equal(one_of_two, plain)


# Against the shorter sequence


@pytest.mark.parametrize(
    "spans",
    [[SEAM], [EARLY], [LATE], [EARLY, LATE], [Span(0.5, 2, 2)], [Span(0.9, 0, 5)], [Span(0.3, 0, 0), Span(0.6, 1, 5)]],
    ids=str,
)
def test_a_route_is_a_forward_pass_without_the_tokens(spans):
    data, kept = inputs(), draws(spans, 0, 1)
    close(routed(build(), data, spans, kept), removed(build(), data, spans, kept))


def test_a_batch_with_different_tokens_is_its_samples_alone():
    data, (kept,) = inputs(), draws([SEAM], 0, 1)
    assert not torch.equal(kept[0], kept[1])
    alone = [routed(build(), one(data, b), [SEAM], [kept[b : b + 1]]) for b in range(2)]
    close(routed(build(), data, [SEAM], [kept]), torch.cat(alone))


@pytest.mark.parametrize("span", [SEAM, EARLY, LATE], ids=str)
@pytest.mark.parametrize(
    "form",
    [lambda mask: mask, lambda mask: mask[:, None, None], lambda mask: mask[:, None, None].repeat(1, 1, mask.shape[1], 1)],
    ids=["a row for each sample", "for the keys", "for queries and keys"],
)
def test_a_mask_over_padded_text_follows_the_tokens(span, form: Callable[[Tensor], Tensor]):
    data, kept, model = inputs(), draws([span], 0, 1), build()
    with TokenRouter(model, [span]).routed(kept):
        ours = run(model, data, joint_attention_kwargs={"attention_mask": form(TEXT_MASK)})
    close(ours, removed(build(), data, [span], kept, TEXT_MASK))


def test_text_tokens_are_never_dropped():
    """With one image token left, the text still sees, and is seen with, all of its own."""
    data, model = inputs(), build()
    for value in (data["hidden_states"], data["encoder_hidden_states"]):
        value.requires_grad_()
    lengths = []
    for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
        block.attn.register_forward_pre_hook(
            lambda _, args, kwargs: lengths.append(kwargs["image_rotary_emb"][0].shape[-2]), with_kwargs=True
        )
    routed(model, data, [SEAM], [torch.tensor([[4], [20]])]).square().sum().backward()
    assert lengths == [TEXT + TOKENS] + [TEXT + 1] * 4 + [TEXT + TOKENS]
    assert (data["encoder_hidden_states"].grad.abs().sum(dim=2) > 0).all()


def test_tokens_of_a_reference_picture_are_never_dropped():
    """Kontext appends them to the picture's own; the first coordinate of their position is 1."""
    data, (kept,), own = inputs(), draws([SEAM], 0, 1), TOKENS
    (random,) = generators(5)
    data["hidden_states"] = torch.cat([data["hidden_states"], torch.randn(2, 6, 64, generator=random)], dim=1)
    data["img_ids"] = torch.cat([data["img_ids"], image_ids(4, 6) + torch.tensor([1.0, 0, 0])])
    model = build()
    with TokenRouter(model, [SEAM]).routed([kept], num_routable=own):
        ours = run(model, data)
    with_reference = torch.cat([kept, torch.arange(own, own + 6).expand(2, 6)], dim=1)
    close(ours, removed(build(), data, [SEAM], [with_reference]))


# Gradients


def test_every_image_token_receives_the_gradient_of_the_shorter_pass():
    spans = [EARLY, LATE]
    kept, ours, theirs = draws(spans, 0, 1), inputs(), inputs()
    for data in (ours, theirs):
        data["hidden_states"].requires_grad_()
    routed(build(), ours, spans, kept).square().sum().backward()
    removed(build(), theirs, spans, kept).square().sum().backward()
    assert (ours["hidden_states"].grad.abs().sum(dim=2) > 0).all()
    close(ours["hidden_states"].grad, theirs["hidden_states"].grad)


def test_lora_inside_and_outside_the_span_learns_what_it_would_from_the_shorter_pass():
    spans, found = [Span(0.5, 1, 2)], []
    for forward in (routed, removed):
        model = build()
        add_lora(model)
        forward(model, inputs(), spans, draws(spans, 0, 1)).square().mean().backward()
        found.append(gradients(model))
    ours, theirs = found
    assert len(ours) == 2 * (2 * 4 + 4 * 3)
    for name, gradient in ours.items():
        assert gradient.abs().sum() > 0, name
        close(gradient, theirs[name])


@pytest.mark.parametrize("spans", [[SEAM], [EARLY, LATE], [Span(0.5, 0, 5)]], ids=str)
@pytest.mark.parametrize("interval", [1, 2])
def test_checkpointed_equals_unchecked_in_values_and_gradients(spans, interval):
    """The backward pass, which runs blocks again, comes after `routed` was left."""
    model, data, kept = build(), inputs(), draws(spans, 0, 1)
    add_lora(model)
    router = TokenRouter(model, spans)
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    reruns = []
    blocks[2].proj_mlp.register_forward_hook(lambda *_: reruns.append(1))

    def each(block, *arguments):
        use = blocks.index(block) % interval == 0
        return checkpoint(block, *arguments, use_reentrant=False) if use else block(*arguments)

    outcomes = []
    for checkpointed in (False, True):
        if checkpointed:
            model.enable_gradient_checkpointing(*([each] if interval > 1 else []))
        with router.routed(kept):
            output = run(model, data)
        output.square().mean().backward()
        outcomes.append((output.detach(), gradients(model)))
    (plain, plain_gradients), (again, again_gradients) = outcomes
    assert len(reruns) == 1 + 2
    close(again, plain)
    for name, gradient in plain_gradients.items():
        close(again_gradients[name], gradient)


@pytest.mark.parametrize("backward", [True, False])
def test_nothing_is_held_when_the_step_is_over(backward):
    model, data = build(), inputs()
    add_lora(model)
    model.enable_gradient_checkpointing()
    router, kept, held = TokenRouter(model, [SEAM]), draws([SEAM], 0, 1), []
    model.transformer_blocks[0].register_forward_hook(lambda _, args, output: held.append(weakref.ref(output[1])))
    with router.routed(kept):
        loss = run(model, data).square().mean()
    held.append(weakref.ref(kept[0]))
    assert all(reference() is not None for reference in held), "the graph needs them until the backward pass"
    if backward:
        loss.backward()
    del kept, loss
    gc.collect()
    assert [reference() for reference in held] == [None] * len(held)


def test_bfloat16_stays_bfloat16_and_near_float32():
    kept, data = draws([SEAM], 0, 1), inputs(dtype=torch.bfloat16)
    model = build().bfloat16()
    model.enable_gradient_checkpointing()
    data["hidden_states"].requires_grad_()
    ours = routed(model, data, [SEAM], kept)
    ours.float().square().mean().backward()
    assert ours.dtype == torch.bfloat16
    assert torch.isfinite(data["hidden_states"].grad).all()
    torch.testing.assert_close(ours.float(), removed(build(), inputs(), [SEAM], kept), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("span", [SEAM, EARLY, LATE], ids=str)
def test_marked_tokens_go_through_every_layer_in_bfloat16_too(span):
    """Also where the route opens in a single block: with all but a few marked, only these few can change anything."""
    mask = torch.ones(2, 8, 12)
    mask[:, :2, :6] = 0  # the first three tokens
    (kept,) = tread.draw_routes([span], TOKENS, mask, 0, 0, range(2))
    assert kept.shape == (2, TOKENS - 3) and (kept == torch.arange(3, TOKENS)).all()
    data, model = inputs(dtype=torch.bfloat16), build()
    add_lora(model)
    model.bfloat16().enable_gradient_checkpointing()
    ours = routed(model.train(), data, [span], [kept])
    ours.float().square().mean().backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())
    reference = build()
    add_lora(reference)
    torch.testing.assert_close(ours.float(), removed(reference, inputs(), [span], [kept]), atol=0.05, rtol=0.05)


@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_take_the_routes_and_train_without_a_graph_break():
    data, kept, outcomes = inputs(), draws([SEAM], 0, 1), []
    for compiled in (False, True):
        model = build()
        add_lora(model)
        router = TokenRouter(model, [SEAM])
        for block in [*model.transformer_blocks, *model.single_transformer_blocks] if compiled else []:
            block.compile(backend="aot_eager", fullgraph=True)
        with router.routed(kept):
            output = run(model, data)
        output.square().mean().backward()
        outcomes.append((output.detach(), gradients(model)))
    torch._dynamo.reset()
    (plain, plain_gradients), (ours, our_gradients) = outcomes
    close(ours, plain)
    for name, gradient in plain_gradients.items():
        close(our_gradients[name], gradient)
