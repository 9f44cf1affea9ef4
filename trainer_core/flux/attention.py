"""Which kernel computes attention, by the job's name for it: diffusers' own table of backends does the work.

SageAttention quantises queries and keys and has no backward pass: layers before it would not learn, without a word. So it
serves the pictures, and training takes torch's attention. diffusers hands xformers a mask as numbers to be added: a boolean one
would raise the words' logits by 1 instead of hiding the padding, without a word too, so masks need torch's attention.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.attention_dispatch import attention_backend

from ..errors import JobError

BACKENDS = {"diffusers": "native", "flash": "flash", "xformers": "xformers", "sageattention": "sage"}
PACKAGES = {"flash": "flash-attn", "xformers": "xformers", "sageattention": "sageattention"}
WITHOUT_GRADIENT = ("sageattention",)
WITHOUT_MASK = ("flash", "sageattention", "xformers")
HALF_FORMATS = (torch.bfloat16, torch.float16)


def check_attention(mechanism: str, *, masked: bool, precision: str) -> None:
    """JobError when the mechanism is not installed here, or cannot do what the job asks of it."""
    if masked and mechanism in WITHOUT_MASK:
        raise JobError(
            f"base.attention_mechanism {mechanism!r} knows no masks, which flux_attention_masked_training needs; "
            "choose 'diffusers'"
        )
    if mechanism == "sageattention" and precision == "nf4-bnb":
        raise JobError("base.attention_mechanism 'sageattention' gives wrong pictures on an 'nf4-bnb' base; choose 'diffusers'")
    try:
        with attention_backend(BACKENDS[mechanism]):
            pass
    except (RuntimeError, ImportError) as error:
        package = PACKAGES[mechanism]
        raise JobError(
            f"base.attention_mechanism: {mechanism!r} needs the package {package} ({error}); "
            f"get it with: pip install {package}, or choose 'diffusers'"
        ) from None


def check_place(mechanism: str, device: torch.device, dtype: torch.dtype) -> None:
    """JobError when the mechanism's kernels do not run on this device, or not in this number format."""
    if mechanism == "diffusers":
        return
    if device.type == "cpu":
        raise JobError(
            f"base.attention_mechanism {mechanism!r} runs on a card only, and this job runs on the CPU; choose 'diffusers'"
        )
    if mechanism != "xformers" and dtype not in HALF_FORMATS:
        raise JobError(f"base.attention_mechanism {mechanism!r} needs mixed_precision 'bf16'; set that, or choose 'diffusers'")


@contextmanager
def attending(mechanism: str, *, training: bool) -> Iterator[None]:
    """Passes inside use the mechanism; in training torch's own, where it has no gradient."""
    if training and mechanism in WITHOUT_GRADIENT:
        mechanism = "diffusers"
    with attention_backend(BACKENDS[mechanism]):
        yield
