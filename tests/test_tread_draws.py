"""TREAD: which tokens a route draws, over which layers it goes and when it ends, without a model."""

import pytest
import torch
from test_tread import LAYERS, TOKENS, generators

from trainer_core import tread
from trainer_core.errors import JobError
from trainer_core.specs.tread import TreadRoute
from trainer_core.tread import Span


def route(ratio: float, first: int, last: int) -> TreadRoute:
    return TreadRoute(selection_ratio=ratio, start_layer_idx=first, end_layer_idx=last)


# Which tokens stay


@pytest.mark.parametrize(
    ("tokens", "ratio", "kept"), [(100, 0.3, 70), (24, 0.5, 12), (7, 0.25, 5), (10, 0.0, 10), (3, 0.99, 1)]
)
def test_the_kept_share_is_as_asked(tokens, ratio, kept):
    assert tread.num_kept(tokens, ratio) == kept
    drawn = tread.draw_kept(tokens, ratio, generators(0, 1, 2))
    assert drawn.shape == (3, kept)
    assert (drawn.diff(dim=1) > 0).all(), "ascending, none twice"
    assert drawn.min() >= 0 and drawn.max() < tokens


def test_a_draw_is_a_function_of_its_generator_alone():
    together = tread.draw_kept(50, 0.5, generators(1, 2, 3))
    before = torch.get_rng_state()
    assert torch.equal(tread.draw_kept(50, 0.5, generators(2)), together[1:2])
    assert torch.equal(tread.draw_kept(50, 0.5, generators(3, 1)), together[[2, 0]])
    assert not torch.equal(together[0], together[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_every_token_is_as_likely_as_any_other():
    counts = torch.bincount(tread.draw_kept(10, 0.5, generators(*range(2000))).flatten(), minlength=10)
    assert ((counts - 1000).abs() < 5 * 500**0.5).all()


def test_forced_tokens_are_always_kept():
    forced = torch.zeros(3, 20)
    forced[0, [3, 17]], forced[1, :], forced[2, 5] = 1.0, 0.5, 0.51
    kept = tread.draw_kept(20, 0.75, generators(0, 1, 2), forced)
    assert kept.shape == (3, 5)
    assert {3, 17} <= set(kept[0].tolist()) and 5 in kept[2]
    assert torch.equal(kept[1:2], tread.draw_kept(20, 0.75, generators(1))), "0.5 forces nothing"


def test_the_sample_that_forces_most_sets_the_count_for_all():
    forced = torch.zeros(2, 20)
    forced[0, 4:15] = 1
    kept = tread.draw_kept(20, 0.75, generators(0, 1), forced)
    assert kept[0].tolist() == list(range(4, 15))
    assert kept.shape == (2, 11) and (kept.diff(dim=1) > 0).all()


# Which layers


def test_layers_count_over_both_kinds_of_block_and_backwards_from_the_end():
    routes = (route(0.5, 2, 20), route(0.25, 21, -2))
    assert tread.resolve_routes(routes, 57, 100) == (Span(0.5, 2, 20), Span(0.25, 21, 55))
    assert tread.resolve_routes((route(0.5, -6, -1),), 6, 100) == (Span(0.5, 0, 5),)
    assert tread.resolve_routes((), 6, 100) == ()


@pytest.mark.parametrize(
    ("share", "num_steps", "until"), [(0.9, 10, 9), (0.7, 10, 7), (0.5, 5, 3), (0.0, 10, 0), (1.0, 10, None), (0.001, 10, 1)]
)
def test_a_route_ends_with_the_first_step_that_has_its_share_of_the_run_behind_it(share, num_steps, until):
    ending = TreadRoute(selection_ratio=0.5, start_layer_idx=1, end_layer_idx=2, anneal_from=share, keep_masked=False)
    (span,) = tread.resolve_routes((ending,), LAYERS, num_steps)
    assert span == Span(0.5, 1, 2, until, keep_masked=False)
    on = [step for step in range(num_steps) if span.is_on(step)]
    assert on == list(range(num_steps if until is None else until))
    drawn = [tread.draw_routes([span], TOKENS, None, 0, step, [0])[0] for step in range(num_steps)]
    assert [ids is not None for ids in drawn] == [step in on for step in range(num_steps)]


@pytest.mark.parametrize(
    ("routes", "said"),
    [
        ([route(0.5, 2, 6)], r"routes\.0: end_layer_idx is 6, but this model has 6 layers; take 0 to 5, or -6 to -1"),
        ([route(0.5, -7, 3)], r"routes\.0: start_layer_idx is -7"),
        ([route(0.5, 4, -3)], r"routes\.0: start_layer_idx 4 is layer 4, after end_layer_idx -3, which is layer 3"),
        ([route(0.5, 1, 3), route(0.5, 3, 5)], r"routes\.1: layers 3 to 5 overlap routes\.0 \(1 to 3\); start it at layer 4"),
        ([route(0.5, 1, 5), route(0.5, 2, 3)], r"routes\.1: layers 2 to 3 overlap routes\.0"),
        ([route(0.5, 4, 5), route(0.5, 1, 2)], r"routes\.1: layers 1 to 2 come before those of routes\.0 \(4 to 5\)"),
    ],
)
def test_a_route_that_does_not_fit_says_where_and_what_to_do(routes, said):
    with pytest.raises(JobError, match=said):
        tread.resolve_routes(routes, LAYERS, 100)


def test_all_routes_that_do_not_fit_are_named_at_once():
    wrong = (route(0.5, 9, -9), route(0.5, 1, 3), route(0.5, 5, 4), route(0.5, 2, 5))
    with pytest.raises(JobError) as error:
        tread.resolve_routes(wrong, LAYERS, 100)
    lines = str(error.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["routes.0", "routes.0", "routes.2", "routes.3"]
    assert "overlap routes.1" in lines[3]
