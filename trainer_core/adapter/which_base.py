"""For which base an adapter file is, told from its own sizes: FLUX.1's, or pico's, or those of a model that is named."""

from pathlib import Path

from ..errors import JobError
from ..flux.files import PICO_FILES
from ..flux.load import FluxShape, read_shape
from .dialects import AdapterSource, open_adapter

FLUX_1 = FluxShape(num_double=19, num_single=38, width=3072, in_channels=64, t5_width=4096, clip_width=768, guidance=True)


def open_for_its_base(path: Path, base: Path | None = None) -> AdapterSource:
    """The adapter, open for the base that it fits. JobError, in the words for FLUX.1, when it fits none."""
    if base is not None:
        return _fitting(path, read_shape(base))
    try:
        return _fitting(path, FLUX_1)
    except JobError as error:
        try:
            return _fitting(path, read_shape(PICO_FILES.transformer))
        except JobError:
            raise error from None


def _fitting(path: Path, shape: FluxShape) -> AdapterSource:
    """Names are checked by opening, sizes by reading the first layer."""
    source = open_adapter(path, shape)
    source.read(next(iter(source.places)))
    return source
