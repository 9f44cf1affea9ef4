"""TREAD routes."""

from pydantic import Field

from .spec import Spec


class TreadRoute(Spec):
    """One TREAD route: image tokens that skip a span of layers in training."""

    selection_ratio: float = Field(
        0.5, ge=0.0, lt=1.0, description="Share of the image tokens that skip the span, drawn anew each step."
    )
    start_layer_idx: int = Field(
        2,
        ge=-57,
        le=56,
        description="First skipped layer, counted over double then single blocks; negative counts from the end.",
    )
    end_layer_idx: int = Field(-2, ge=-57, le=56, description="Last skipped layer, inclusive; negative counts from the end.")
    keep_masked: bool = Field(
        True, description="Where a picture has a mask, the tokens that it marks (above half) are never left out."
    )
    anneal_from: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description="Share of the run after which the route ends and all tokens are used again: 0.9 for the last tenth; 1: never.",
    )
