"""What can be measured of any LoRA of a run, after it: the held-out loss, as the run itself measures it, and CLIP's scores.

It takes the run's own pictures: those set aside or of eval datasets for the loss, those trained on for the likeness. Where they
are no longer there, that is said, and what the run has measured is all that is known.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffusers import FluxTransformer2DModel
from PIL import Image

from .data.encode import Caches, encode_captions, encode_masks, encode_pictures, open_caches, pictures_of
from .errors import JobError
from .saved import SavedLora
from .setup import Setup, prepare
from .validation.evaluate import ByDataset, choose, evaluate, mean_loss
from .validation.shots import references_of

if TYPE_CHECKING:
    from .validation.clip_score import Score

log = logging.getLogger(__name__)


def with_pictures(setup: Setup, cache_dir: Path) -> Setup:
    """The setup with its pictures, where the job measures something on them."""
    validation = setup.job.validation
    if not validation.eval_steps_interval and validation.evaluation_type == "none":
        return setup
    try:
        found = prepare(setup.job, cache_dir)
    except JobError as error:
        log.warning("what the run has not measured itself stays unknown: %s", error)
        return setup
    return replace(setup, samples=found.samples, eval_samples=found.eval_samples)


def encode(setup: Setup, cache_dir: Path) -> Caches:
    """The prompts with what they start from, and what the held-out loss is measured on, encoded or found in the cache."""
    judged = choose(setup.eval_samples, setup.job.validation.num_eval_images)
    texts = [text for shot in setup.shots for text in (shot.prompt, shot.negative_prompt)]
    texts += [sample.caption for sample in judged]
    silent = lambda done, total: None  # noqa: E731
    base, tiled = setup.job.base, setup.job.base.vae_enable_tiling
    caches = open_caches(cache_dir, judged, setup.files, setup.flavour, setup.encoding, tiled=tiled)
    if pictures := [*pictures_of(judged), *references_of(setup.shots)]:
        encode_pictures(
            caches,
            pictures,
            setup.files.vae,
            setup.device,
            silent,
            tiled=tiled,
            sliced=base.vae_enable_slicing,
            batch_size=base.vae_batch_size,
        )
    encode_masks(caches, judged, silent)
    encode_captions(caches, list(dict.fromkeys(texts)), setup.files, setup.flavour, setup.encoding, setup.device, silent)
    return caches


def label_of(lora: SavedLora | None, strength: float) -> str:
    """How a row is called."""
    return f"step {lora.step}{' (average)' if lora.is_ema else ''}, strength {strength:g}" if lora else "base"


def known_loss(losses: dict[int, float], lora: SavedLora | None, strength: float) -> float | None:
    """The held-out loss that the run has measured of exactly this."""
    if lora is None:
        return losses.get(0)
    return losses.get(lora.step) if strength == 1 and not lora.is_ema else None


def measure_loss(setup: Setup, transformer: FluxTransformer2DModel, caches: Caches) -> ByDataset:
    """The held-out loss of the transformer as it is now; nothing where the run has no such pictures."""
    if not setup.eval_samples:
        return {}
    by_dataset = evaluate(setup, transformer, caches, lambda done, total: None, lambda: False)
    assert by_dataset is not None, "nobody can ask this to stop"
    return by_dataset


def measured(by_dataset: ByDataset) -> float | None:
    """As one figure."""
    return mean_loss(by_dataset) if by_dataset else None


class Scores:
    """CLIP's judgement of pictures, where the job has a CLIP and the pictures that it was trained on are there."""

    def __init__(self, setup: Setup, cache_dir: Path):
        self._judge = None
        if setup.job.validation.evaluation_type == "clip" and setup.samples:
            from .validation.clip_score import ClipJudge

            name = setup.job.validation.pretrained_evaluation_model_name_or_path.strip()
            allowed = setup.job.base.allow_download
            self._judge = ClipJudge(name, setup.device, setup.samples, cache_dir, allow_download=allowed)

    def of(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> "list[Score | None]":
        """One for each picture, or None for each."""
        if self._judge is None:
            return [None for _ in pictures]
        return list(self._judge.judge(list(pictures), prompts))
