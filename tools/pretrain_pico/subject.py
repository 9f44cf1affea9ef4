"""Teach pico one new figure and see what else changes: python -m tools.pretrain_pico.subject --data DIR --out DIR  (3 minutes).

The figure (a drawing that is in no font) is trained in twelve scenes under a trigger word, once with regularisation pictures of
256 emoji and once without. Judged with always the same noise are the figure in eight scenes that were not trained, and 64 other
emoji that are in neither set: the first loss should fall, the second stay.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from trainer_core.cli import main as flux_lora
from trainer_core.job import TrainJob
from trainer_core.job_file import dump_job
from trainer_core.specs.adapter import LoraSpec
from trainer_core.specs.base import BaseModelSpec
from trainer_core.specs.dataset import DatasetSpec
from trainer_core.specs.flow import FlowSpec
from trainer_core.specs.optimizer import OptimizerSpec
from trainer_core.specs.training import TrainingSpec
from trainer_core.specs.validation import ValidationSpec

from . import data, files
from .demo_pictures import png
from .scene import PLAIN, Scene, caption, draw, random_scene

TRIGGER = "zorb"
TRAINED_SCENES, HELD_OUT_SCENES, KEPT, OTHERS = 12, 8, 256, 64
SIDE = 128


def figure() -> np.ndarray:
    """The new figure, uint8 RGBA: a teal egg with one eye, a striped belly, yellow feet and an antenna."""
    image = Image.new("RGBA", (SIDE, SIDE))
    pen = ImageDraw.Draw(image)
    pen.line((64, 30, 84, 8), fill=(70, 40, 90), width=5)
    pen.ellipse((77, 1, 93, 17), fill=(230, 60, 120))
    pen.ellipse((24, 24, 104, 116), fill=(20, 150, 150), outline=(8, 80, 84), width=4)
    for top in (78, 90, 102):
        pen.line((46, top, 82, top), fill=(250, 220, 120), width=5)
    pen.ellipse((44, 36, 84, 72), fill="white", outline=(8, 80, 84), width=3)
    pen.ellipse((58, 46, 74, 64), fill=(90, 30, 120))
    for left in (34, 72):
        pen.rounded_rectangle((left, 110, left + 24, 124), 6, fill=(245, 180, 40))
    return np.asarray(image)


def write(folder: Path, number: int, glyph: np.ndarray, name: str, scene: Scene) -> None:
    """One picture with its caption."""
    files.write_bytes(folder / f"{number:03d}.png", png(draw(glyph, scene)))
    files.write_bytes(folder / f"{number:03d}.txt", caption(name, scene).encode())


def write_pictures(data_dir: Path, out: Path) -> None:
    """Four folders: the figure trained and held out, emoji to keep, and other emoji to judge."""
    chance, zorb = random.Random(0), figure()
    scenes = list(dict.fromkeys([PLAIN, *(random_scene(chance) for _ in range(200))]))
    for number in range(TRAINED_SCENES):
        write(out / "trained", number, zorb, TRIGGER, scenes[number])
    for number in range(HELD_OUT_SCENES):
        write(out / "held_out", number, zorb, TRIGGER, scenes[TRAINED_SCENES + number])
    subjects, glyphs = data.load(data_dir)
    chosen = chance.sample(range(len(subjects)), KEPT + OTHERS)
    for number, index in enumerate(chosen):
        folder = out / ("kept" if number < KEPT else "others")
        write(folder, number, np.ascontiguousarray(glyphs[index]), subjects[index].name, PLAIN)


def job(pictures: Path, *, regularised: bool, steps: int, judged: int) -> TrainJob:
    """The figure's pictures half as often as the emoji to keep: they make a third of the samples."""
    repeats = KEPT // TRAINED_SCENES // 2
    datasets = [
        DatasetSpec(id="figure", instance_data_dir=str(pictures / "trained"), repeats=repeats),
        DatasetSpec(id="held_out", instance_data_dir=str(pictures / "held_out"), dataset_type="eval"),
        DatasetSpec(id="others", instance_data_dir=str(pictures / "others"), dataset_type="eval"),
    ]
    if regularised:
        datasets.append(DatasetSpec(id="kept", instance_data_dir=str(pictures / "kept"), is_regularisation_data=True))
    return TrainJob(
        name=f"subject-{'regularised' if regularised else 'plain'}",
        base=BaseModelSpec(model_flavour="pico"),
        datasets=tuple(datasets),
        lora=LoraSpec(lora_rank=8, flux_lora_target="all+ffs"),
        optimizer=OptimizerSpec(learning_rate=5e-4, lr_scheduler="cosine", lr_warmup_steps=min(20, steps // 2)),
        flow=FlowSpec(flux_guidance_value=2.5),
        validation=ValidationSpec(
            validation_prompts=(
                f"a {TRIGGER}",
                f"{TRIGGER} on a blue background",
                "cat face",
                "red heart",
                "automobile",
                "tree",
            ),
            eval_steps_interval=100,
            num_eval_images=judged,
        ),
        training=TrainingSpec(max_train_steps=steps, train_batch_size=8, gradient_checkpointing=False),
    )


def changes(report: dict) -> dict[str, float]:
    """By how much the loss on each judged dataset changed: -0.25 is a quarter less."""
    first, last = (report["evaluations"][place]["by_dataset"] for place in (0, -1))
    means = {name: [sum(by_sigma[name].values()) / len(by_sigma[name]) for by_sigma in (first, last)] for name in first}
    return {name: round(after / before - 1, 4) for name, (before, after) in means.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--judged", type=int, default=OTHERS, help="the most pictures of a kind that are judged (default: all, 64)"
    )
    arguments = parser.parse_args()
    write_pictures(arguments.data, arguments.out / "pictures")
    shown = {}
    for regularised in (False, True):
        wanted = job(arguments.out / "pictures", regularised=regularised, steps=arguments.steps, judged=arguments.judged)
        path = arguments.out / f"{wanted.name}.json"
        files.write_bytes(path, dump_job(wanted).encode())
        flux_lora(["run", str(path), "--out", str(arguments.out / "runs")])
        finished = next((arguments.out / "runs").glob(f"{wanted.name}-*/result.json"))
        shown[wanted.name] = changes(json.loads(finished.read_text())) | {"folder": str(finished.parent)}
    print(json.dumps(shown))


if __name__ == "__main__":
    main()
