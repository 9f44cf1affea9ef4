"""The demo: a style, learnt from 16 pictures on the built-in base in about a minute on two CPU cores, and the proof of it.

The 16 pictures are two-tone renderings of emoji; the pictures made before and after are of forty other subjects. Each has an
original and a two-tone rendering beside it, so that learning the style can be counted: the share of subjects whose picture
lies nearer to the two-tone rendering than to the original.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import pico
from .job import TrainJob
from .run_dir import RunDir
from .specs.adapter import LoraSpec
from .specs.base import BaseModelSpec
from .specs.dataset import DatasetSpec
from .specs.flow import FlowSpec
from .specs.optimizer import OptimizerSpec
from .specs.training import TrainingSpec
from .specs.validation import ValidationSpec

COMPARED_EDGE = 16  # pixels: style and shape, not the position of an edge


def demo_job() -> TrainJob:
    """Trains on the pictures that ship with the pack and pictures subjects that are not among them."""
    prompts = tuple(path.read_text(encoding="utf-8").strip() for path in _unseen())
    return TrainJob(
        name="demo",
        # float32: a processor without bf16 instructions takes thirteen times as long in bf16
        base=BaseModelSpec(model_flavour="pico", mixed_precision="no"),
        datasets=(DatasetSpec(id="two-tone emoji", instance_data_dir=str(pico.DEMO_PICTURES_DIR)),),
        lora=LoraSpec(lora_rank=16, flux_lora_target="all+ffs"),
        optimizer=OptimizerSpec(learning_rate=2e-3, lr_scheduler="cosine", lr_warmup_steps=20, lr_end=1e-4),
        flow=FlowSpec(flow_schedule_shift=2.0, flux_guidance_value=2.5, caption_dropout_probability=0.1),
        validation=ValidationSpec(validation_prompts=prompts),
        training=TrainingSpec(max_train_steps=400, train_batch_size=8, gradient_checkpointing=False),
    )


def style_shares(report: dict[str, Any]) -> dict[str, float]:
    """`style_share_before` and `style_share_after` of a finished demo, from its pictures on disk."""
    run_dir = RunDir(Path(report["run_dir"]))
    return {
        f"style_share_{when}": _style_share([run_dir.sample_path(step, f"{index:02d}") for index in range(len(_unseen()))])
        for when, step in (("before", 0), ("after", report["steps"]))
    }


def _style_share(pictures: list[Path]) -> float:
    """The share of pictures, in the order of the unseen subjects, that lie nearer to the two-tone rendering."""
    nearer = 0
    for picture, subject in zip(pictures, _unseen(), strict=True):
        made = _small(picture)
        original = _small(pico.DEMO_UNSEEN_DIR / "original" / f"{subject.stem}.png")
        styled = _small(pico.DEMO_UNSEEN_DIR / "styled" / f"{subject.stem}.png")
        nearer += bool(np.square(made - styled).mean() < np.square(made - original).mean())
    return round(nearer / len(pictures), 3)


def _unseen() -> list[Path]:
    """The caption files of the subjects that are pictured but not trained on."""
    return sorted(pico.DEMO_UNSEEN_DIR.glob("*.txt"))


def _small(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        small = image.convert("RGB").resize((COMPARED_EDGE, COMPARED_EDGE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)
