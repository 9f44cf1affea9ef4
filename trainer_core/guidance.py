"""Real CFG and when to leave it out: the maths that the trainer's own pictures and ComfyUI's AdaptiveGuider share.

    guided = unconditional + scale * (conditional - unconditional)

Adaptive guidance (arXiv 2312.12487): late in sampling both predictions nearly coincide, and evaluating the unconditional one is
then wasted. They are compared by the cosine of their denoised pictures, the least over the batch; once that reaches the
threshold, CFG has ended for good. Pure functions of tensors (B, ...) in any format.
"""

from torch import Tensor
from torch.nn.functional import cosine_similarity


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance; at scale 1 it is the conditional prediction."""
    return unconditional + scale * (conditional - unconditional)


def similarity(conditional: Tensor, unconditional: Tensor) -> float:
    """The cosine of both predictions of a picture, the least over the batch; -1 to 1."""
    return cosine_similarity(conditional.flatten(1).float(), unconditional.flatten(1).float(), dim=1).min().item()


def against_flat(denoised: Tensor, scale: float) -> Tensor:
    """Guidance against a flat picture, at no further evaluation: contrast around each picture's mean, evened by the root of its
    spread."""
    axes = tuple(range(1, denoised.ndim))
    mean, spread = denoised.mean(axes, keepdim=True), denoised.std(axes, keepdim=True)
    return mean + scale * (denoised - mean) / spread.sqrt()
