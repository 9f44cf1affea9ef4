"""The run's pictures on disk, at one step of it.

Those of step 0 are the base's, made once for whatever shapes them and kept in the cache under a digest of all that: another run
with the same base and prompts takes them from there. Each later picture also stands beside the base's, to look at.

Processes share what is sampled, in the batches that one process would make, so the pictures are the same; the first decodes and
writes them.
"""

import hashlib
import io
import struct
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import astuple
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from PIL import Image

from ..adapter.switch import adapter_off
from ..context import RunContext
from ..data.encode import Caches
from ..data.images import apply_fit, load_rgb, to_image
from ..file_names import expanded
from ..flux.files import fingerprint
from ..flux.vae import load_vae
from ..objective import attention_mask
from ..setup import Setup
from ..writing import write_atomically
from .pictures import draw_row
from .previews import Previews, Show
from .sample import Encoded, Foresee, latent_size, prompts_at_once, sample_latents
from .shots import Shot, alike, place_of


def render_shots(
    setup: Setup,
    transformer: FluxTransformer2DModel,
    caches: Caches,
    context: RunContext,
    *,
    step: int,
    ema: bool = False,
) -> list[Path]:
    """A picture of each shot; those of step 0 are the base's, without the adapter. Returns their paths. `ema` says that the
    adapter holds its running average now, so that they are kept apart.

    What is on disk, and whole, is not made again. After a wish to stop it returns early, with nothing more written.
    """
    paths = {shot: context.run_dir.sample_path(step, shot.name, ema=ema) for shot in setup.shots}
    if step == 0 and context.group.is_first:
        _take_known(setup, paths, context)
    for shots in alike(setup.shots):
        if context.group.tell(all(is_whole(paths[shot]) for shot in shots)):
            continue
        latents = _sample(setup, transformer, caches, context, shots, step)
        if latents is None:
            break
        if not context.group.is_first:
            continue
        vae = load_vae(setup.files.vae, setup.device, tiled=setup.job.base.vae_enable_tiling)
        for shot, latent in zip(shots, latents, strict=True):
            if context.should_stop():
                break
            if is_whole(paths[shot]):  # sampled with the others all the same, so that theirs come out as always
                continue
            picture = to_png(vae.decode(latent.unsqueeze(0))[0])
            context.run_dir.check_there()
            write_atomically(paths[shot], picture)
            if step == 0:
                write_atomically(_known_path(setup, shot, context), picture)
            base_is_there = step and is_whole(context.run_dir.sample_path(0, shot.name))
            compared = _compare(shot, paths[shot], context, step=step, ema=ema) if base_is_there else None
            context.events.emit(
                "sample",
                step=step,
                index=place_of(shot, setup.shots),
                prompt=shot.prompt,
                path=str(paths[shot]),
                compared=compared and str(compared),
            )
    return list(paths.values())


def _sample(
    setup: Setup,
    transformer: FluxTransformer2DModel,
    caches: Caches,
    context: RunContext,
    shots: list[Shot],
    step: int,
) -> torch.Tensor | None:
    """Of shots that are alike; None after a wish to stop."""
    group, canvas = context.group, shots[0].canvas
    at_once = prompts_at_once(setup.sampler, shots[0].num_tokens)
    batches = [range(len(shots))[start : start + at_once] for start in range(0, len(shots), at_once)]
    own = [number for batch in group.mine(len(batches)) for number in batches[batch]]
    prompts, negatives = encoded_prompts(setup, caches, [shots[number] for number in own])
    transformer.eval()
    progress, foresee = context.progress("sample"), _previews(setup, context, [shots[number] for number in own], step)
    should_stop = (lambda: False) if group.in_step else context.should_stop
    latents: torch.Tensor | None = torch.zeros(len(shots), *latent_size(canvas))
    if own:
        with nullcontext() if step else adapter_off(transformer):
            found = sample_latents(transformer, prompts, negatives, setup.sampler, canvas, should_stop, progress, foresee)
        latents = None if found is None else latents.index_copy(0, torch.tensor(own), found)
    if group.any(latents is None)[0]:
        return None
    group.collect(latents)
    return latents


def _previews(setup: Setup, context: RunContext, shots: list[Shot], step: int) -> Foresee:
    """What is done with a forecast: the first process shows it where there is a decoder."""
    if setup.preview_decoder is None or not context.group.is_first:
        return lambda first, number, latents: None
    show: Show = lambda shot, path: context.events.emit(  # noqa: E731
        "preview", step=step, index=place_of(shot, setup.shots), path=str(path)
    )
    return Previews(setup.preview_decoder, setup.device, shots, context.run_dir.previews_dir, show)


def _take_known(setup: Setup, paths: dict[Shot, Path], context: RunContext) -> None:
    """The base's pictures, of those that were made before; each is news to this run."""
    for index, (shot, path) in enumerate(paths.items()):
        known = _known_path(setup, shot, context)
        if is_whole(path) or not is_whole(known):
            continue
        context.run_dir.check_there()
        write_atomically(path, known.read_bytes())
        context.events.emit("sample", step=0, index=index, prompt=shot.prompt, path=str(path), compared=None)


def _known_path(setup: Setup, shot: Shot, context: RunContext) -> Path:
    """Where the base's picture of this shot is kept: by all that shapes it."""
    base, flow, files = setup.job.base, setup.flow, setup.files
    helper = base.assistant_lora_path.strip()
    parts = [
        *(fingerprint(path) for path in (files.transformer, files.vae, files.clip_l, files.t5)),
        fingerprint(expanded(helper)) if helper else "",
        base.assistant_lora_inference_strength,
        base.base_model_precision,
        base.attention_mechanism,
        base.vae_enable_tiling,
        flow.flux_attention_masked_training and flow.t5_mask_mode,
        setup.encoding,
        setup.device.type,
        torch.__version__,
        astuple(setup.sampler),
        shot[1:-1],
        shot.reference and shot.reference[1:],
    ]
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
    return context.cache_dir / "pictures" / digest[:2] / f"{digest}.png"


def _compare(shot: Shot, path: Path, context: RunContext, *, step: int, ema: bool) -> Path:
    """The picture beside that of the base, and before both what it starts from, as long as its file is there."""
    compared = context.run_dir.compared_path(step, shot.name, ema=ema)
    row = [("base", context.run_dir.sample_path(0, shot.name)), (f"step {step}{', average' if ema else ''}", path)]
    pictures = [(label, load_rgb(file)) for label, file in row]
    if (start := shot.reference) is not None and start.path.is_file():
        pictures.insert(0, ("from", apply_fit(load_rgb(start.path, start.background or "white"), start.fit, start.bucket)))
    draw_row(compared, pictures)
    return compared


def encoded_prompts(setup: Setup, caches: Caches, shots: Sequence[Shot]) -> tuple[list[Encoded], list[Encoded]]:
    """What the model is asked for each shot, and the negative of it, which has the same reference."""

    def encoded(shot: Shot, caption: str) -> Encoded:
        """With the mask that training uses."""
        entry = {name: tensor.unsqueeze(0) for name, tensor in caches.text(caption).items()}
        reference = shot.reference and caches.latent_of(shot.reference).unsqueeze(0)
        return Encoded(entry["text"], entry["pooled"], attention_mask(setup.flow, entry["text_mask"]), reference)

    return [encoded(shot, shot.prompt) for shot in shots], [encoded(shot, shot.negative_prompt) for shot in shots]


def is_whole(path: Path) -> bool:
    """Whether a picture is there as it was written: a PNG has a checksum over each of its parts."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError, struct.error):  # what Pillow raises of damaged files
        return False
    return True


def to_png(pixels_CHW: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    to_image(pixels_CHW).save(buffer, format="PNG")
    return buffer.getvalue()
