"""The prompts' pictures on disk, at one step of the run."""

import io
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from ..context import RunContext
from ..data.cache import read_entry
from ..data.encode import Caches
from ..data.images import to_image
from ..flux.vae import load_vae
from ..run_dir import write_atomically
from ..setup import Setup
from .sample import Encoded, sample_latents


def render_prompts(
    setup: Setup,
    transformer: FluxTransformer2DModel,
    caches: Caches,
    context: RunContext,
    *,
    step: int,
    ema: bool = False,
) -> list[Path]:
    """A picture of each prompt; those of step 0 are the base's, without the adapter. Returns their paths. `ema` says that the
    adapter holds its running average now, so that they are kept apart.

    What is on disk is not made again. After a wish to stop it returns early, with nothing written.
    """
    paths = [context.run_dir.sample_path(step, index, ema=ema) for index in range(len(setup.prompts))]
    if all(path.exists() for path in paths):
        return paths
    negative = _encoded(caches, setup.job.validation.validation_negative_prompt)
    prompts = [_encoded(caches, prompt) for prompt in setup.prompts]
    transformer.eval()
    if step == 0:
        transformer.disable_adapters()
    latents = sample_latents(transformer, prompts, negative, setup.sampler, context.should_stop, context.progress("sample"))
    transformer.enable_adapters()
    if latents is None:
        return paths
    vae = load_vae(setup.files.vae, setup.device)
    for index, (prompt, path, latent) in enumerate(zip(setup.prompts, paths, latents, strict=True)):
        _save_png(path, vae.decode(latent.unsqueeze(0))[0])
        context.events.emit("sample", step=step, index=index, prompt=prompt, path=str(path))
    return paths


def _encoded(caches: Caches, caption: str) -> Encoded:
    entry = read_entry(caches.captions[caption])
    return Encoded(entry["text"].unsqueeze(0), entry["pooled"].unsqueeze(0))


def _save_png(path: Path, pixels_CHW: torch.Tensor) -> None:
    buffer = io.BytesIO()
    to_image(pixels_CHW).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())
