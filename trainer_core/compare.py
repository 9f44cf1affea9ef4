"""Checkpoints side by side: the same prompts and the same noise by each of them, in a grid with what was measured of each.

The base is loaded once, as the run had it; one LoRA after another is put on it, as it was exported. So the grid shows what
ComfyUI would show. The held-out losses are those that the run measured.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from diffusers import FluxTransformer2DModel
from torch import Tensor

from .adapter.build import ADAPTER, adapted_layers, add_adapter
from .adapter.dialects import read_adapter
from .adapter.initial import initial_parts
from .adapter.plan import plan_adapter
from .data.encode import Caches, encode_captions, open_caches
from .errors import JobError
from .flux.attention import attending
from .flux.flavours import FLAVOURS
from .flux.load import empty_transformer, open_weights, read_shape
from .flux.resolve import resolve_files
from .flux.vae import load_vae
from .run_dir import RunDir, read_json
from .saved import SavedLora, find_lora, held_out_losses, list_steps
from .setup import DTYPES, Setup, pick_device
from .trainee import load_base
from .validation.grid import Cell, draw_grid
from .validation.render import encoded_prompt, to_png
from .validation.sample import sample_latents, sampler_settings
from .validation.shots import Canvas, Shot

Progress = Callable[[int, int], None]


def compare(
    run_dir: RunDir,
    choices: Sequence[str],
    strengths: Sequence[float],
    out: Path,
    cache_dir: Path,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Draw the grid into `out`, and what belongs to it as JSON; `choices` are as `saved.find_lora` takes them, none for every
    checkpoint. A strength of 0 is the base. JobError where the run has no such LoRA, or makes no pictures.
    """
    setup = setup_of(run_dir)
    loras = [find_lora(run_dir, which) for which in choices or map(str, list_steps(run_dir))]
    if not loras:
        raise JobError(f"run {run_dir.run_id} has saved nothing yet; let it save a checkpoint first")
    losses = held_out_losses(run_dir)
    texts = _encode(setup, cache_dir)
    weights = open_weights(setup.files.transformer)
    transformer = load_base(setup, weights)
    vae = load_vae(setup.files.vae, setup.device, tiled=setup.job.base.vae_enable_tiling)
    rows: list[list[Cell]] = []
    plans = [(None, 0.0)] + [(lora, strength) for lora in loras for strength in strengths if strength]
    for number, (lora, strength) in enumerate(plans):
        progress(number, len(plans))
        with LoraOn(transformer, setup, lora, strength), attending(setup.job.base.attention_mechanism, training=False):
            latents = _sample(setup, transformer, texts)
        label = f"step {lora.step}{' (average)' if lora.is_ema else ''}, strength {strength:g}" if lora else "base"
        loss = losses.get(lora.step) if lora and strength == 1 and not lora.is_ema else losses.get(0) if lora is None else None
        pictures = [to_png(vae.decode(latent.unsqueeze(0))[0]) for latent in latents]
        rows.append([Cell(label, loss, shot.prompt, picture) for shot, picture in zip(setup.shots, pictures, strict=True)])
    progress(len(plans), len(plans))
    draw_grid(out, rows)
    return {
        "text": describe(rows),
        "grid": str(out),
        "run_dir": str(run_dir.root),
        "rows": [{"label": row[0].label, "held_out_loss": row[0].loss} for row in rows],
        "loras": [str(lora.path) for lora in loras],
    }


def describe(rows: Sequence[Sequence[Cell]]) -> str:
    """The rows as a text: what each is, and its held-out loss; the best is marked."""
    losses = [row[0].loss for row in rows[1:] if row[0].loss is not None]
    best = min(losses, default=None)
    lines = []
    for row in rows:
        loss = "" if row[0].loss is None else f"  held-out loss {row[0].loss:.4f}{'  (best)' * (row[0].loss == best)}"
        lines.append(f"{row[0].label:<36}{loss}".rstrip())
    if not losses:
        lines.append("no held-out loss was measured: set eval_steps_interval with an eval dataset or num_held_out")
    return "\n".join(lines)


class LoraOn:
    """In here the LoRA, if any, is on the transformer at this strength; afterwards it is as it was."""

    def __init__(self, transformer: FluxTransformer2DModel, setup: Setup, lora: SavedLora | None, strength: float):
        self._transformer, self._setup, self._lora, self._strength = transformer, setup, lora, strength

    def __enter__(self) -> None:
        if self._lora is None:
            return
        given, parts = initial_parts(read_adapter(self._lora.path, self._setup.shape))
        plain = {"lora_init_type": "default", "lora_dropout": 0.0, "rank_pattern": (), "init_lora": ""}
        plan = plan_adapter(empty_transformer(self._setup.shape), self._setup.job.lora.model_copy(update=plain), given)
        add_adapter(self._transformer, plan, 0, parts)
        for layer in adapted_layers(self._transformer).values():
            layer.scaling[ADAPTER] *= self._strength

    def __exit__(self, *error: object) -> None:
        if self._lora is not None:
            self._transformer.delete_adapters(ADAPTER)


def setup_of(run_dir: RunDir) -> Setup:
    """What making the run's pictures needs; its dataset is not looked at. JobError where it makes none."""
    job, shots = run_dir.job(), read_json(run_dir.manifest_path)["shots"]
    if not shots:
        raise JobError(f"run {run_dir.run_id} has no prompts (num_validation_images is 0), so there is nothing to compare")
    files, flavour = resolve_files(job.base), FLAVOURS[job.base.model_flavour]
    shape = read_shape(files.transformer)
    return Setup(
        job=job,
        flavour=flavour,
        files=files,
        shape=shape,
        spans=(),
        adapter=plan_adapter(empty_transformer(shape), job.lora, quantised=True),
        initial={},
        samples=(),
        eval_samples=(),
        rejected=(),
        num_steps=0,
        shots=tuple(Shot(**shot | {"canvas": Canvas(**shot["canvas"])}) for shot in shots),
        sampler=sampler_settings(job.validation, flavour),
        device=pick_device(job.training.device),
        dtype=DTYPES[job.base.mixed_precision],
    )


def _encode(setup: Setup, cache_dir: Path) -> Caches:
    """The prompts, encoded or found in the cache."""
    texts = list(dict.fromkeys(text for shot in setup.shots for text in (shot.prompt, shot.negative_prompt)))
    silent = lambda done, total: None  # noqa: E731
    caches = open_caches(cache_dir, (), setup.files, setup.flavour, setup.encoding)
    encode_captions(caches, texts, setup.files, setup.flavour, setup.encoding, setup.device, silent)
    return caches


def _sample(setup: Setup, transformer: FluxTransformer2DModel, texts: Caches) -> list[Tensor]:
    """A latent for each shot, in their order."""
    latents: dict[Shot, Tensor] = {}
    for canvas, group in groupby(sorted(setup.shots, key=lambda shot: shot.canvas), key=lambda shot: shot.canvas):
        shots = list(group)
        prompts = [encoded_prompt(texts, shot.prompt, setup.job.flow) for shot in shots]
        negatives = [encoded_prompt(texts, shot.negative_prompt, setup.job.flow) for shot in shots]
        found = sample_latents(transformer.eval(), prompts, negatives, setup.sampler, canvas)
        assert found is not None, "nobody can ask this to stop"
        latents |= dict(zip(shots, found, strict=True))
    return [latents[shot] for shot in setup.shots]
