"""The modulation layers off the card: 27 % of FLUX's weights, for one token a pass.

The linears that turn (sigma, guidance, pooled text) into shifts, scales and gates hold 3.25 of the 11.9 billion weights,
6.5 GB in bfloat16, and see a single vector a sample. What they give is a function of what is known before a step: so they stay
in host memory (as views of the file, where its format is the base's), and only their results, 2 MB a sample, go to the card.

The one idea: results are remembered by what they were computed from, the bytes of the input vector. So nothing has to know
which pass is running: a pass that was looked ahead to finds its results, gradient checkpointing finds them again in the
backward pass, and one that nobody foresaw computes its own. Looking ahead matters because of the cost: a product with one
vector reads all 6.5 GB, one with 32 reads them once as well. `time_text_embed`, which makes the vectors, stays with them.

Exact up to rounding: a product's last bit may depend on how many vectors it is taken with. Groups begin at fixed steps, so a
resumed run takes the same ones.

Legend: B samples of a pass, N vectors of all passes, D width, O outputs of a layer, P width of the pooled text.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional

EMBEDDER = "time_text_embed"
SAMPLES_TOGETHER = 32  # 2 MB of results each
LAYERS = ("norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear")


class Conditions(NamedTuple):
    """What the modulation of one pass depends on, as `predict_velocity` is given it."""

    sigma_B: Tensor
    guidance_B: Tensor
    pooled_BP: Tensor


class HostLinear(nn.Module):
    """A linear layer in host memory, whose results go to the card and are remembered."""

    def __init__(self, linear: nn.Linear, device: torch.device):
        super().__init__()
        self.linear = linear
        self._device = device
        self._known: dict[str, dict[bytes, Tensor]] = {}

    def learn(self, x_ND: Tensor, purpose: str) -> None:
        """Remember the results of these vectors, in place of those that were learned for the purpose before."""
        self._known[purpose] = dict(zip(_keys(x_ND), self.linear(x_ND), strict=True))

    @torch.compiler.disable  # bytes and dictionaries are not for a graph
    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, O) on the card."""
        keys = _keys(x_BD)
        known = next((known for known in self._known.values() if all(key in known for key in keys)), None)
        with torch.no_grad():
            result_BO = self.linear(x_BD) if known is None else torch.stack([known[key] for key in keys])
        return result_BO.to(self._device, non_blocking=True)


def is_modulation(name: str) -> bool:
    """Whether the layer of this name belongs to the modulation: what stays on the host, and must not be trained there."""
    return name.startswith(f"{EMBEDDER}.") or name.endswith(LAYERS)


def keep_on_host(transformer: FluxTransformer2DModel, device: torch.device) -> None:
    """Put the modulation layers, which are on the host, behind a `HostLinear` each; the rest is on `device`."""
    for name, module in list(transformer.named_modules()):
        if name.endswith(LAYERS) and isinstance(module, nn.Linear):
            transformer.set_submodule(name, HostLinear(module, device))


def steps_together(step: int, samples_a_step: int) -> range:
    """The steps that this one is computed ahead with: always the same ones, wherever a run began and is to end."""
    count = max(1, SAMPLES_TOGETHER // samples_a_step)
    return range(step - step % count, step - step % count + count)


@torch.no_grad()
def look_ahead(transformer: FluxTransformer2DModel, passes: Iterable[Conditions], purpose: str) -> None:
    """Compute the modulation of these passes at once; does nothing where it is on the card. What was computed for another
    purpose stays: pictures in the middle of the training leave its results alone.

    The vectors are made pass by pass, as the passes will make them, so that they are found again to the bit.
    """
    layers = [module for module in transformer.modules() if isinstance(module, HostLinear)]
    if not layers:
        return
    dtype = transformer.x_embedder.weight.dtype
    vectors = [functional.silu(_embedded(transformer, one, dtype)) for one in passes]
    together_ND = torch.cat(vectors)
    for layer in layers:
        layer.learn(together_ND, purpose)


def _embedded(transformer: FluxTransformer2DModel, one: Conditions, dtype: torch.dtype) -> Tensor:
    """(B, D) as FLUX's forward makes it: sigma and guidance times 1000 in the model's format."""
    sigma_B, pooled_BP = one.sigma_B.to(dtype) * 1000, one.pooled_BP.to(dtype)
    if not transformer.config.guidance_embeds:
        return transformer.time_text_embed(sigma_B, pooled_BP)
    return transformer.time_text_embed(sigma_B, one.guidance_B.to(dtype) * 1000, pooled_BP)


def _keys(x_ND: Tensor) -> list[bytes]:
    return [row.tobytes() for row in x_ND.detach().contiguous().view(torch.uint8).numpy()]
