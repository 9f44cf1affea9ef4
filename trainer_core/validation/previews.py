"""What a picture will be, shown while it is still being made.

After some of the sampler's steps the model's own forecast of the picture goes through TAEF1's decoder: 5 MB, some
milliseconds. Of pictures that are sampled together the first is shown, at 512 pixels at most. Nothing of the sampling depends
on it, and it draws no random number.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..data.images import to_image
from ..file_names import expanded
from ..flux.dialects import open_vae
from ..flux.files import ModelFiles
from ..flux.vae import LATENT_CHANNELS, Vae, load_decoder
from ..specs.base import BaseModelSpec
from ..writing import write_atomically
from .shots import Shot

A_PICTURE = 3
MOST_LATENT_EDGE = 64  # 512 pixels
QUALITY = 85

Show = Callable[[Shot, Path], None]


def find_decoder(base: BaseModelSpec, files: ModelFiles) -> Path | None:
    """The file with TAEF1's decoder: the one that the job names, or the base's VAE where that is TAEF1. JobError where what the
    job names is none."""
    if named := base.preview_decoder_path.strip():
        path = expanded(named)
        load_decoder(path, torch.device("cpu"))
        return path
    return None if "decoder.conv_in.weight" in open_vae(files.vae).entries else files.vae


def preview_steps(num_steps: int) -> frozenset[int]:
    """Numbers of the steps after which there is a preview."""
    parts = A_PICTURE + 1
    return frozenset(round(num_steps * part / parts) for part in range(1, parts)) & frozenset(range(1, num_steps))


class Previews:
    """Writes the previews of these shots, which are sampled in their order, and tells `show` of each."""

    def __init__(self, decoder_path: Path, device: torch.device, shots: Sequence[Shot], folder: Path, show: Show):
        self._decoder_path, self._device = decoder_path, device
        self._shots, self._folder, self._show = shots, folder, show
        self._decoder: Vae | None = None

    def __call__(self, number: int, step: int, foreseen_BCHW: Tensor) -> None:
        """The picture that the model foresees at this step for the shot of this number, which the batch begins with. Where the
        run folder has gone nothing is written, and those speak up who must write."""
        if not self._folder.parent.is_dir():
            return
        if self._decoder is None:
            self._decoder = load_decoder(self._decoder_path, self._device)
        buffer, shot = io.BytesIO(), self._shots[number]
        to_image(self._decoder.decode(_small(foreseen_BCHW[:1]))[0]).save(buffer, format="JPEG", quality=QUALITY)
        path = self._folder / f"{shot.name}-{step:03d}.jpg"
        write_atomically(path, buffer.getvalue())
        self._show(shot, path)


def _small(latent_BCHW: Tensor) -> Tensor:
    assert latent_BCHW.shape[1] == LATENT_CHANNELS
    height, width = latent_BCHW.shape[2:]
    share = MOST_LATENT_EDGE / max(height, width)
    if share >= 1:
        return latent_BCHW
    return interpolate(latent_BCHW, size=(max(1, round(height * share)), max(1, round(width * share))), mode="area")
