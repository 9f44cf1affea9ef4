"""The prompts' pictures on disk, at one step of the run."""

import io
from contextlib import nullcontext
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from ..adapter.switch import adapter_off
from ..context import RunContext
from ..data.encode import Caches
from ..data.images import to_image
from ..flux.vae import load_vae
from ..objective import attention_mask
from ..run_dir import write_atomically
from ..setup import Setup
from ..specs.flow import FlowSpec
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
    negative = _encoded(caches, setup.job.validation.validation_negative_prompt, setup.job.flow)
    prompts = [_encoded(caches, prompt, setup.job.flow) for prompt in setup.prompts]
    transformer.eval()
    report = context.progress("sample")
    with adapter_off(transformer) if step == 0 else nullcontext():
        latents = sample_latents(transformer, prompts, negative, setup.sampler, context.should_stop, report)
    if latents is None:
        return paths
    vae = load_vae(setup.files.vae, setup.device, tiled=setup.job.base.vae_enable_tiling)
    for index, (prompt, path, latent) in enumerate(zip(setup.prompts, paths, latents, strict=True)):
        _save_png(path, vae.decode(latent.unsqueeze(0))[0])
        context.events.emit("sample", step=step, index=index, prompt=prompt, path=str(path))
    return paths


def _encoded(caches: Caches, caption: str, flow: FlowSpec) -> Encoded:
    """The caption with the mask that training uses."""
    entry = {name: tensor.unsqueeze(0) for name, tensor in caches.text(caption).items()}
    return Encoded(entry["text"], entry["pooled"], attention_mask(flow, entry["text_mask"]))


def _save_png(path: Path, pixels_CHW: torch.Tensor) -> None:
    buffer = io.BytesIO()
    to_image(pixels_CHW).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())
