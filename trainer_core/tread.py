"""TREAD: which image tokens a training step leaves out of which layers.

Routing (Krause et al. 2025, arXiv 2501.04765, section 3) makes a training step cheaper: before layer i a random share of the
image tokens is taken aside, layers i to j work on the shorter sequence, and after layer j the others come back with the
values they left with. Nothing is lost, unlike masking: every token reaches the loss, and its gradient flows around the span
instead of through it. Sampling always uses all tokens. The price is a jump of the loss at the start, because the base never
saw a thinned-out sequence; a LoRA spends its first steps on that, so routes pay on long runs and large pictures.

A route is (ratio dropped, first layer, last layer). Layers are counted over the double blocks, then the single ones. Which
tokens stay is uniform, for each sample from its own generator, and always returned in ascending order.

Legend: B batch, S image tokens, L text tokens, N = L + S all tokens, K kept image tokens, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from .errors import JobError
from .rng import generator
from .specs.tread import TreadRoute


@dataclass(frozen=True)
class Span:
    """A route on a model of known depth, in a run of known length: this share of the image tokens skips layers `first` to
    `last`, both included, in the steps before number `until_step` (None: in all). `keep_masked`: never those that a mask marks.
    """

    ratio: float
    first: int
    last: int
    until_step: int | None = None
    keep_masked: bool = True

    def is_on(self, step: int) -> bool:
        """Whether the route is taken in this step, counted from 0."""
        return self.until_step is None or step < self.until_step


def resolve_routes(routes: Sequence[TreadRoute], num_layers: int, num_steps: int) -> tuple[Span, ...]:
    """The routes in layers and steps of this run; one JobError with every route that is out of range, empty or overlaps."""
    problems: list[str] = []
    spans: list[Span] = []
    previous: tuple[int, Span] | None = None
    for number, route in enumerate(routes):
        found = _outside(number, route, num_layers)
        if not found:
            span = Span(
                route.selection_ratio,
                _from_start(route.start_layer_idx, num_layers),
                _from_start(route.end_layer_idx, num_layers),
                None if route.anneal_from == 1 else first_step_from(route.anneal_from, num_steps),
                route.keep_masked,
            )
            found = _misplaced(number, route, span, previous)
            spans.append(span)
            if span.first <= span.last:
                previous = (number, span)
        problems += found
    if problems:
        raise JobError("the TREAD routes do not fit this model:\n" + "\n".join(f"  {line}" for line in problems))
    return tuple(spans)


def first_step_from(share: float, num_steps: int) -> int:
    """The first step, counted from 0, that has this share of the run behind it."""
    return math.ceil(round(share * num_steps, 6))  # 0.7 * 10 is a little more than 7


def num_kept(num_tokens: int, ratio: float) -> int:
    """How many of so many tokens stay when this share is dropped; at least one does."""
    return max(1, num_tokens - round(num_tokens * ratio))


def draw_kept(
    num_tokens: int,
    ratio: float,
    generators: Sequence[torch.Generator],
    forced_BS: Tensor | None = None,
    at_least: int = 0,
) -> Tensor:
    """(B, K) int64 on the CPU, ascending: the tokens that stay, drawn for each sample from its own generator.

    Tokens with `forced_BS` above 0.5 always stay. Where a sample forces more than the ratio keeps, K grows for the whole
    batch, and its other samples fill up with random tokens; then what a sample keeps depends on the batch that it is in.
    `at_least` is K where samples of the batch are elsewhere that force more.
    """
    order_BS = torch.stack([torch.randperm(num_tokens, generator=generator) for generator in generators])
    count = max(num_kept(num_tokens, ratio), at_least)
    if forced_BS is not None:
        forced_BS = forced_BS.cpu() > 0.5
        count = max(count, int(forced_BS.sum(dim=1).max()))
        order_BS = order_BS - num_tokens * forced_BS  # forced ones come first
    return order_BS.argsort(dim=1)[:, :count].sort(dim=1).values


def mask_of_tokens(mask_BHW: Tensor) -> Tensor:
    """(B, S): the mask of a latent's cells, averaged over the 2x2 of each image token."""
    return avg_pool2d(mask_BHW, 2).flatten(1)


def draw_routes(
    spans: Sequence[Span],
    num_tokens: int,
    mask_BHW: Tensor | None,
    seed: int,
    step: int,
    positions: Sequence[int],
    other_mask_BHW: Tensor | None = None,
) -> list[Tensor | None]:
    """(B, K) kept image tokens for each route, None where it is over. `positions` are those of the samples in the step, and
    `mask_BHW` their masks over the latent's cells; `other_mask_BHW` are those of the batch's samples that are elsewhere."""
    marked_BS = None if mask_BHW is None else mask_of_tokens(mask_BHW)
    elsewhere = 0 if other_mask_BHW is None else int((mask_of_tokens(other_mask_BHW) > 0.5).sum(dim=1).max())

    def draw(number: int, span: Span) -> Tensor:
        generators = [generator(seed, step, f"route {number} of sample {position}") for position in positions]
        forced_BS, at_least = (marked_BS, elsewhere) if span.keep_masked else (None, 0)
        return draw_kept(num_tokens, span.ratio, generators, forced_BS, at_least)

    return [draw(number, span) if span.is_on(step) else None for number, span in enumerate(spans)]


def gather_tokens(tokens_BSD: Tensor, ids_BK: Tensor) -> Tensor:
    """(B, K, D): the tokens with these numbers."""
    return tokens_BSD.gather(1, ids_BK[..., None].expand(-1, -1, tokens_BSD.shape[2]))


def scatter_tokens(tokens_BSD: Tensor, kept_BKD: Tensor, ids_BK: Tensor) -> Tensor:
    """(B, S, D): a copy of `tokens_BSD` in which the tokens with these numbers are replaced; inverse of `gather_tokens`."""
    return tokens_BSD.scatter(1, ids_BK[..., None].expand(-1, -1, tokens_BSD.shape[2]), kept_BKD)


def joint_ids(ids_BK: Tensor, num_text: int) -> Tensor:
    """(B, L + K): numbers in the joint sequence of all text tokens, then of these image tokens."""
    text_BL = torch.arange(num_text, device=ids_BK.device).expand(len(ids_BK), num_text)
    return torch.cat([text_BL, num_text + ids_BK], dim=1)


def gather_rows(table_ND: Tensor, joint_BM: Tensor) -> Tensor:
    """(B, M, D): the rows of a position table for each sample's tokens of the joint sequence."""
    return table_ND[joint_BM]


def gather_mask(mask: Tensor, joint_BM: Tensor) -> Tensor:
    """An attention mask of all tokens, (B, N) or (B, heads or 1, N or 1, N), for the tokens that stay: M instead of N."""
    if mask.ndim == 2:
        return mask.gather(1, joint_BM)
    mask = mask.take_along_dim(joint_BM[:, None, None, :], dim=3)
    return mask if mask.shape[2] == 1 else mask.take_along_dim(joint_BM[:, None, :, None], dim=2)


def _from_start(layer: int, num_layers: int) -> int:
    return layer + num_layers if layer < 0 else layer


def _outside(number: int, route: TreadRoute, num_layers: int) -> list[str]:
    """The ends of the route that this model has no layer for."""
    ends = {"start_layer_idx": route.start_layer_idx, "end_layer_idx": route.end_layer_idx}
    return [
        f"routes.{number}: {name} is {layer}, but this model has {num_layers} layers; "
        f"take 0 to {num_layers - 1}, or -{num_layers} to -1 to count from the end"
        for name, layer in ends.items()
        if not -num_layers <= layer < num_layers
    ]


def _misplaced(number: int, route: TreadRoute, span: Span, previous: tuple[int, Span] | None) -> list[str]:
    """What is wrong between the two ends, or with the route before; `previous` is its number and its span."""
    if span.first > span.last:
        return [
            f"routes.{number}: start_layer_idx {route.start_layer_idx} is layer {span.first}, after end_layer_idx "
            f"{route.end_layer_idx}, which is layer {span.last}; the start must not come after the end"
        ]
    if previous is None or span.first > previous[1].last:
        return []
    before, earlier = previous
    if span.last < earlier.first:
        return [
            f"routes.{number}: layers {span.first} to {span.last} come before those of routes.{before} "
            f"({earlier.first} to {earlier.last}); list the routes from the first layer to the last"
        ]
    return [
        f"routes.{number}: layers {span.first} to {span.last} overlap routes.{before} ({earlier.first} to {earlier.last}); "
        f"start it at layer {earlier.last + 1} or later, or let routes.{before} end before layer {span.first}"
    ]
