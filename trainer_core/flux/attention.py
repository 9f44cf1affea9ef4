"""Which kernel computes attention, by the job's name for it: diffusers' own table of backends does the work.

SageAttention quantises queries and keys and has no backward pass: layers before it would not learn, without a word. So it
serves the pictures, and training takes torch's attention.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.models.attention_dispatch import attention_backend

from ..errors import JobError

BACKENDS = {"diffusers": "native", "flash": "flash", "xformers": "xformers", "sageattention": "sage"}
PACKAGES = {"flash": "flash-attn", "xformers": "xformers", "sageattention": "sageattention"}
WITHOUT_GRADIENT = ("sageattention",)
WITHOUT_MASK = ("flash", "sageattention")


def check_attention(mechanism: str, *, masked: bool, precision: str) -> None:
    """JobError when the mechanism is not installed here, or cannot do what the job asks of it."""
    if masked and mechanism in WITHOUT_MASK:
        raise JobError(
            f"base.attention_mechanism {mechanism!r} knows no masks, which flux_attention_masked_training needs; "
            "choose 'diffusers' or 'xformers'"
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


@contextmanager
def attending(mechanism: str, *, training: bool) -> Iterator[None]:
    """Passes inside use the mechanism; in training torch's own, where it has no gradient."""
    if training and mechanism in WITHOUT_GRADIENT:
        mechanism = "diffusers"
    with attention_backend(BACKENDS[mechanism]):
        yield
