"""Checkpoints side by side: the same prompts and the same noise by each of them, in a grid with what was measured of each.

The base is loaded once, as the run had it; one LoRA after another is put on it, as it was exported. So the grid shows what
ComfyUI would show. The held-out losses are those that the run measured; what it did not measure, such as the running average or
half the strength, is measured here, and CLIP's scores are of these very pictures.
"""

import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers import FluxTransformer2DModel
from PIL import Image
from torch import Tensor

from .adapter.assistant import Assistant, add_assistant
from .adapter.build import ADAPTER, adapted_layers, add_adapter, remove_adapter
from .adapter.dialects import read_adapter
from .adapter.initial import initial_parts
from .adapter.plan import plan_adapter
from .data.encode import Caches
from .errors import JobError
from .file_names import expanded
from .flavour_check import flow_of
from .flux.attention import attending
from .flux.flavours import FLAVOURS
from .flux.load import empty_transformer, open_weights, read_shape
from .flux.resolve import resolve_files
from .flux.vae import load_vae
from .measure import Scores, encode, known_loss, label_of, measure_loss, measured, with_pictures
from .run_dir import RunDir
from .saved import SavedLora, find_lora, held_out_losses, list_steps
from .setup import DTYPES, Setup, pick_device
from .trainee import load_base
from .validation.grid import Cell, draw_grid
from .validation.render import encoded_prompts, to_png
from .validation.sample import sample_latents, sampler_settings
from .validation.shots import Shot, alike, from_data
from .writing import read_sealed

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
    if not setup.shots:
        raise JobError(f"run {run_dir.run_id} has no prompts (num_validation_images is 0), so there is nothing to compare")
    loras = chosen_loras(run_dir, choices)
    setup, losses = with_pictures(setup, cache_dir), held_out_losses(run_dir)
    caches, scores = encode(setup, cache_dir), Scores(setup, cache_dir)
    base = Base(setup)
    vae = load_vae(setup.files.vae, setup.device, tiled=setup.job.base.vae_enable_tiling)
    rows: list[list[Cell]] = []
    plans = [(None, 0.0)] + [(lora, strength) for lora in loras for strength in strengths if strength]
    for number, (lora, strength) in enumerate(plans):
        progress(number, len(plans))
        loss = known_loss(losses, lora, strength)
        with LoraOn(base.transformer, setup, lora, strength):
            with base.picturing():
                latents = sample_shots(setup, base.transformer, caches)
            with base.judging():
                loss = measured(measure_loss(setup, base.transformer, caches)) if loss is None else loss
        pictures = [to_png(vae.decode(latent.unsqueeze(0))[0]) for latent in latents]
        judged = scores.of([Image.open(io.BytesIO(picture)) for picture in pictures], [shot.prompt for shot in setup.shots])
        label = label_of(lora, strength)
        cells = zip(setup.shots, pictures, judged, strict=True)
        rows.append([Cell(label, loss, shot.prompt, picture, score) for shot, picture, score in cells])
    progress(len(plans), len(plans))
    draw_grid(out, rows)
    return {
        "text": describe(rows),
        "grid": str(out),
        "run_dir": str(run_dir.root),
        "rows": [
            {"label": row[0].label, "held_out_loss": row[0].loss, "scores": [asdict(c.score) for c in row if c.score]}
            for row in rows
        ],
        "loras": [str(lora.path) for lora in loras],
    }


def chosen_loras(run_dir: RunDir, choices: Sequence[str]) -> list[SavedLora]:
    """Those that were named, or every checkpoint that is kept; JobError where there is none."""
    loras = [find_lora(run_dir, which) for which in choices or map(str, list_steps(run_dir))]
    if not loras:
        raise JobError(f"run {run_dir.run_id} has saved nothing yet; let it save a checkpoint first")
    return loras


def describe(rows: Sequence[Sequence[Cell]]) -> str:
    """The rows as a text: what each is, its held-out loss, and its pictures' mean scores; the best loss is marked."""
    losses = [row[0].loss for row in rows[1:] if row[0].loss is not None]
    best = min(losses, default=None)
    lines = []
    for row in rows:
        line = f"{row[0].label:<36}"
        if row[0].loss is not None:
            line += f"  held-out loss {row[0].loss:.4f}{'  (best)' * (row is not rows[0] and row[0].loss == best)}"
        if scores := [cell.score for cell in row if cell.score]:
            fit, near = (
                sum(values) / len(scores) for values in zip(*((s.clip_score, s.likeness) for s in scores), strict=True)
            )
            line += f"  CLIP score {fit:.2f}  likeness {near:.2f}"
        lines.append(line.rstrip())
    if not losses:
        lines.append("no held-out loss was measured: set eval_steps_interval with an eval dataset or num_held_out")
    return "\n".join(lines)


class Base:
    """The run's base with its assistant, as pictures and evaluations have them."""

    def __init__(self, setup: Setup):
        self._spec = setup.job.base
        self.transformer = load_base(setup, open_weights(setup.files.transformer))
        helper = self._spec.assistant_lora_path.strip()
        self._assistant: Assistant | None = None
        if helper:
            self._assistant = add_assistant(self.transformer, expanded(helper), setup.shape)

    def picturing(self) -> ExitStack:
        return self._with(self._spec.assistant_lora_inference_strength, training=False)

    def judging(self) -> ExitStack:
        return self._with(self._spec.assistant_lora_strength, training=True)

    def _with(self, strength: float, *, training: bool) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(attending(self._spec.attention_mechanism, training=training))
        if self._assistant is not None:
            stack.enter_context(self._assistant.at(strength))
        return stack


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
            remove_adapter(self._transformer)


def setup_of(run_dir: RunDir) -> Setup:
    """What loading the run's base and making its pictures needs; its dataset is not looked at."""
    job, shots = run_dir.job(), read_sealed(run_dir.manifest_path)["shots"]
    files, flavour = resolve_files(job.base), FLAVOURS[job.base.model_flavour]
    shape = read_shape(files.transformer)
    return Setup(
        job=job,
        flow=flow_of(job),
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
        shots=tuple(map(from_data, shots)),
        sampler=sampler_settings(job.validation, flavour),
        device=pick_device(job.training.device),
        dtype=DTYPES[job.base.mixed_precision],
    )


def sample_shots(setup: Setup, transformer: FluxTransformer2DModel, texts: Caches) -> list[Tensor]:
    """A latent for each shot, in their order."""
    latents: dict[Shot, Tensor] = {}
    for shots in alike(setup.shots):
        prompts, negatives = encoded_prompts(setup, texts, shots)
        found = sample_latents(transformer.eval(), prompts, negatives, setup.sampler, shots[0].canvas)
        assert found is not None, "nobody can ask this to stop"
        latents |= dict(zip(shots, found, strict=True))
    return [latents[shot] for shot in setup.shots]
