"""The adapter off for a while: what the frozen base alone says.

One place for it, because training asks the base too (regularisation), between two passes that need the adapter.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers import FluxTransformer2DModel


@contextmanager
def adapter_off(transformer: FluxTransformer2DModel) -> Iterator[None]:
    """Passes inside are the base's; nothing of the adapter runs, so its dropout does not either."""
    transformer.disable_adapters()
    try:
        yield
    finally:
        transformer.enable_adapters()
