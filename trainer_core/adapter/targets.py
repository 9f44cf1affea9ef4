"""Which linear layers an adapter sits on.

The names of the sets are those of SimpleTuner's `flux_lora_target`. A layer belongs to a set when its diffusers name ends
with one of the set's suffixes, so `proj_out` also means the final projection. On FLUX.1 (19 double and 38 single blocks):
mmdit 190 layers, all 266, all+ffs 419, context 76, context+ffs 114, ai-toolkit 495, tiny 2, nano 1.
"""

from torch import nn

from ..errors import JobError

_IMAGE_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT_ATTENTION = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_TEXT_FEED_FORWARD = ("ff_context.net.0.proj", "ff_context.net.2")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", *_TEXT_FEED_FORWARD, "proj_mlp", "proj_out")
_MODULATION = ("norm.linear", "norm1.linear", "norm1_context.linear")

TARGET_SUFFIXES: dict[str, tuple[str, ...]] = {
    "mmdit": _IMAGE_ATTENTION,
    "all": _IMAGE_ATTENTION + _TEXT_ATTENTION,
    "all+ffs": _IMAGE_ATTENTION + _TEXT_ATTENTION + _FEED_FORWARD,
    "context": _TEXT_ATTENTION,
    "context+ffs": _TEXT_ATTENTION + _TEXT_FEED_FORWARD,
    "ai-toolkit": _IMAGE_ATTENTION + _TEXT_ATTENTION + _FEED_FORWARD + _MODULATION,
    "tiny": ("single_transformer_blocks.7.proj_out", "single_transformer_blocks.20.proj_out"),
    "nano": ("single_transformer_blocks.7.proj_out",),
}


def target_modules(model: nn.Module, flux_lora_target: str) -> list[str]:
    """Full names of the linear layers of this set, in the model's order; JobError when there is none."""
    suffixes = TARGET_SUFFIXES[flux_lora_target]
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    matched = [name for name in linears if any(name == s or name.endswith(f".{s}") for s in suffixes)]
    if not matched:
        raise JobError(
            f"lora.flux_lora_target {flux_lora_target!r} matches no layer of this base (it looks for {', '.join(suffixes)}); "
            "choose another target, such as 'all'"
        )
    return matched
