"""Routes through FLUX: the hooks that shorten the image sequence over a span of blocks.

The one idea: all that a route needs travels with the data, so that no hook remembers anything from one call to the next.

  * The ids of the kept tokens enter through `joint_attention_kwargs`, the model's own parcel for its blocks. Gradient
    checkpointing keeps the arguments of each block, hence the recomputation in the backward pass meets the same ids, even if
    `routed` was left long before, and they are freed with the graph.
  * The block that opens a span takes the kept tokens out and hands on a `Shortened` in place of the image tokens; FLUX passes
    what a block returns to the next one unseen, also from the double to the single blocks. It holds the kept tokens, the full
    ones from before the span (one reference, no copy), and what attention needs: the rotary rows and the mask of what is left.
  * The block that closes the span puts the kept tokens back between the others, out of place.

So a checkpointed block inside a span stores K tokens and not S, and text tokens, sample, route and seam need no special case.
diffusers' rotary function takes one table for the whole batch, but here each sample keeps other positions: the attention of
the routed blocks gets a processor that does the same with a table for each sample.

Costs one gather and one scatter a span. Needs the non-reentrant checkpointing that diffusers uses by default; with the
reentrant kind the backward pass raises. ControlNet residuals cannot be added inside a span, and context parallelism is not
supported.

Legend: B batch, S image tokens (Kontext's reference tokens included), L text tokens, N = L + S, K kept image tokens, D width,
H heads, E head width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor, nn

from ..tread import Span, gather_mask, gather_rows, gather_tokens, joint_ids, scatter_tokens

HOOK = "tread"
ROUTE = "tread_route"  # its name among the joint_attention_kwargs

Tables = tuple[Tensor, Tensor]  # cosine and sine, (N, E) or (B, N, E)


class Route(NamedTuple):
    """What the blocks must know of one forward pass."""

    kept: tuple[Tensor | None, ...]  # (B, K) for each span; None is a span that is not in force
    num_routable: int | None  # image tokens from this one on always stay


class Shortened(NamedTuple):
    """What flows through a span in place of the image tokens."""

    kept_BKD: Tensor
    full_BSD: Tensor  # as they were before the span
    ids_BK: Tensor
    tables: Tables
    mask: Tensor | None


class TokenRouter:
    """Installs the routes on the transformer, for good; they do nothing outside `routed`."""

    def __init__(self, transformer: FluxTransformer2DModel, spans: Sequence[Span]):
        self.spans = tuple(spans)
        self._transformer = transformer
        self._parcel = _ParcelHook()
        if not self.spans:
            return  # a model without routes stays as it is
        _install(transformer, self._parcel)
        for layer, block in enumerate([*transformer.transformer_blocks, *transformer.single_transformer_blocks]):
            opens = next((number for number, span in enumerate(self.spans) if span.first == layer), None)
            closes = any(span.last == layer for span in self.spans)
            _install(block, _LayerHook(opens, closes))
            if any(span.first <= layer <= span.last for span in self.spans):
                block.attn.set_processor(PerSampleAttention(block.attn.processor._attention_backend))

    @contextmanager
    def routed(self, kept: Sequence[Tensor | None], *, num_routable: int | None = None) -> Iterator[None]:
        """Forward passes inside take the routes: (B, K) image token numbers for each span, from `tread.draw_kept`, or None
        for one that is not to be taken.

        `num_routable` protects tokens that follow the picture's own, such as Kontext's reference picture: those from that
        number on always stay. The backward pass may come later, outside.
        """
        assert len(kept) == len(self.spans), f"{len(kept)} draws for {len(self.spans)} spans"
        if any(ids_BK is not None for ids_BK in kept):
            device = self._transformer.x_embedder.weight.device
            moved = tuple(None if ids_BK is None else ids_BK.to(device) for ids_BK in kept)
            self._parcel.route = Route(moved, num_routable)
        try:
            yield
        finally:
            self._parcel.route = None


class PerSampleAttention:
    """FLUX's joint attention, as diffusers' own processor does it, also with rotary tables for each sample."""

    def __init__(self, backend: str | None):
        self._attention_backend = backend  # the name under which diffusers' set_attention_backend changes it

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tables | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The image tokens, or (image, text) in a double block; a single block passes the joint tokens as the first."""
        query, key, value = (
            project(hidden_states).unflatten(-1, (-1, attn.head_dim)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        if encoder_hidden_states is not None:
            projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            text_query, text_key, text_value = (
                project(encoder_hidden_states).unflatten(-1, (-1, attn.head_dim)) for project in projections
            )
            query = torch.cat([attn.norm_added_q(text_query), query], dim=1)
            key = torch.cat([attn.norm_added_k(text_key), key], dim=1)
            value = torch.cat([text_value, value], dim=1)
        if image_rotary_emb is not None:
            query, key = rotate(query, image_rotary_emb), rotate(key, image_rotary_emb)
        attended_BNHE = dispatch_attention_fn(query, key, value, attn_mask=attention_mask, backend=self._attention_backend)
        attended_BND = attended_BNHE.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return attended_BND
        L = encoder_hidden_states.shape[1]
        image_BSD = attn.to_out[1](attn.to_out[0](attended_BND[:, L:].contiguous()))
        return image_BSD, attn.to_add_out(attended_BND[:, :L].contiguous())


def rotate(x_BNHE: Tensor, tables: Tables) -> Tensor:
    """Rotary embedding in float32: (even, odd) neighbours of a head turn by their token's angle; tables (N, E) or (B, N, E)."""
    cosine, sine = (table.to(x_BNHE.device).unsqueeze(-2) for table in tables)
    even, odd = x_BNHE.unflatten(-1, (-1, 2)).unbind(-1)
    turned_BNHE = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (x_BNHE.float() * cosine + turned_BNHE.float() * sine).to(x_BNHE.dtype)


class _ParcelHook(ModelHook):
    """On the whole model: puts the route that is in force, if any, into the parcel that every block receives."""

    def __init__(self) -> None:
        super().__init__()
        self.route: Route | None = None

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.route is not None:
            kwargs["joint_attention_kwargs"] = {**(kwargs.get("joint_attention_kwargs") or {}), ROUTE: self.route}
        return args, kwargs


class _LayerHook(ModelHook):
    """On each block: takes the route out of the parcel, and opens or closes a span where one begins or ends here."""

    def __init__(self, opens: int | None, closes: bool):
        super().__init__()
        self._opens = opens
        self._closes = closes

    def new_forward(
        self,
        block: nn.Module,
        hidden_states: Tensor | Shortened,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Tables | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor | Shortened]:
        """The block's forward; (text, image) as the block returns them. `block` is bound by diffusers and not needed here."""
        run = self.fn_ref.original_forward
        parcel = dict(joint_attention_kwargs or {})
        route = parcel.pop(ROUTE, None)
        if route is not None and self._opens is not None and route.kept[self._opens] is not None:
            mask = parcel.get("attention_mask")
            hidden_states = _shorten(hidden_states, encoder_hidden_states.shape[1], image_rotary_emb, mask, route, self._opens)
        if not isinstance(hidden_states, Shortened):
            return run(hidden_states, encoder_hidden_states, temb, image_rotary_emb, parcel)
        if hidden_states.mask is not None:
            parcel["attention_mask"] = hidden_states.mask
        text_BLD, kept_BKD = run(hidden_states.kept_BKD, encoder_hidden_states, temb, hidden_states.tables, parcel)
        if self._closes:
            return text_BLD, scatter_tokens(hidden_states.full_BSD, kept_BKD, hidden_states.ids_BK)
        return text_BLD, hidden_states._replace(kept_BKD=kept_BKD)


def _shorten(full_BSD: Tensor, num_text: int, tables: Tables, mask: Tensor | None, route: Route, number: int) -> Shortened:
    """Open span `number` of the route."""
    B, S, _ = full_BSD.shape
    ids_BK = route.kept[number]
    assert len(ids_BK) == B, f"ids for {len(ids_BK)} samples, tokens of {B}"
    if route.num_routable is not None:
        ids_BK = torch.cat([ids_BK, torch.arange(route.num_routable, S, device=ids_BK.device).expand(B, -1)], dim=1)
    joint_BM = joint_ids(ids_BK, num_text)
    cosine, sine = tables
    return Shortened(
        kept_BKD=gather_tokens(full_BSD, ids_BK),
        full_BSD=full_BSD,
        ids_BK=ids_BK,
        tables=(gather_rows(cosine, joint_BM), gather_rows(sine, joint_BM)),
        mask=None if mask is None else gather_mask(mask, joint_BM),
    )


def _install(module: nn.Module, hook: ModelHook) -> None:
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, HOOK)
