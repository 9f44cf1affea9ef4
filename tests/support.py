"""Small real pictures, small real jobs, and the trainer run as a user runs it."""

import contextlib
import io
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import Parameter

from trainer_core.adapter.build import add_adapter
from trainer_core.adapter.plan import plan_adapter
from trainer_core.cli import main
from trainer_core.context import RunContext
from trainer_core.data.encode import Caches, encode_captions, encode_masks, encode_pictures, open_caches, pictures_of
from trainer_core.data.sample import Sample
from trainer_core.events import EventLog
from trainer_core.flux.files import PICO_FILES, ModelFiles
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.flux.text import EncoderFormat, clip_encoder, t5_encoder
from trainer_core.job import TrainJob
from trainer_core.run_dir import RunDir, run_dir_for
from trainer_core.setup import prepare
from trainer_core.specs.adapter import LoraSpec
from trainer_core.train import run

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
SIZES = ((96, 96), (120, 80), (80, 120))


def make_pictures(folder: Path, count: int = 6) -> Path:
    """So many small pictures of three aspects, each with a caption."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = Image.new("RGB", SIZES[number % 3], "white")
        ImageDraw.Draw(image).ellipse((10, 10, 60, 60), fill=(40 * number % 256, 100, 255 - 30 * number % 256))
        image.save(folder / f"ball_{number}.png")
        (folder / f"ball_{number}.txt").write_text(f"a ball {number}", encoding="utf-8")
    return folder


def job_data(pictures: Path, **parts: dict) -> dict:
    """A tiny job as JSON data; parts replace fields of its specs, for instance training={"seed": 3}."""
    data = {
        "name": "test",
        "datasets": [{"instance_data_dir": str(pictures)}],
        "base": {"mixed_precision": "no"},
        "lora": {"lora_rank": 4},
        "optimizer": {"learning_rate": 1e-3},
        "validation": {"num_validation_images": 0},
        "training": {"max_train_steps": 6, "train_batch_size": 2, "gradient_checkpointing": False, "device": "cpu"},
    }
    for name, fields in parts.items():
        data[name] = data.get(name, {}) | fields if isinstance(fields, dict) else fields
    return data


def add_lora(transformer: FluxTransformer2DModel, spec: LoraSpec, seed: int = 0) -> dict[str, Parameter]:
    """The adapter of this spec on a transformer, new; its parameters."""
    return add_adapter(transformer, plan_adapter(transformer, spec), seed)


def encode_text(files: ModelFiles, captions: list[str], encoding: EncoderFormat | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L, D) T5's sequences, (B, P) CLIP's pooled vectors, (B, L) the text's mask, with pico's lengths, on the CPU."""
    encoding, pico, cpu = encoding or EncoderFormat(torch.float32), FLAVOURS["pico"], torch.device("cpu")
    text_BLD, mask_BL = t5_encoder(files, pico, encoding, cpu).encode(captions)
    return text_BLD, clip_encoder(files, pico, encoding, cpu).encode(captions), mask_BL


class Command:
    """The outcome of one `flux-lora` command: exit code, the JSON of its last line, and what it said.

    In this process, which saves the imports' ten seconds; `in_child=True` starts a real process.
    """

    def __init__(self, *arguments: object, in_child: bool = False, environment: dict[str, str] | None = None):
        words = [*map(str, arguments), "--json"]
        if in_child:
            command = [sys.executable, "-m", "trainer_core", *words]
            env = os.environ | (environment or {})
            done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
            self.code, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr
        else:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                self.code = main(words)
            self.stdout, self.stderr = out.getvalue(), err.getvalue()
        lines = self.stdout.strip().splitlines()
        self.report = json.loads(lines[-1]) if lines else {}


def batches_per_epoch(samples: Sequence[Sample], batch_size: int) -> int:
    """How many batches show everything once, repeats included: counted another way than the order does."""
    counts: Counter = Counter()
    for sample in samples:
        counts[sample.dataset_id, sample.shape] += sample.passes
    return sum(math.ceil(count / batch_size) for count in counts.values())


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


def encoded(samples: Sequence[Sample], cache: Path) -> Caches:
    """These samples with their captions and masks, through pico's encoders in float32."""
    caches = opened(samples, cache)
    encode_pictures(caches, pictures_of(samples), PICO_FILES.vae, CPU, silent)
    captions = ["", *(caption for sample in samples for caption in sample.captions)]
    encode_captions(caches, captions, PICO_FILES, FLAVOURS["pico"], EncoderFormat(torch.float32), CPU, silent)
    encode_masks(caches, samples, silent)
    return caches


def opened(samples: Sequence[Sample], cache: Path) -> Caches:
    """The caches for these samples as they are on disk, for pico's encoders in float32."""
    return open_caches(cache, samples, PICO_FILES, FLAVOURS["pico"], EncoderFormat(torch.float32))


def poison_latents(samples: Sequence[Sample], cache: Path) -> None:
    """Every latent of these becomes NaN, under its own name."""
    caches = opened(samples, cache)
    with caches.latents.writer() as writer:
        for picture in pictures_of(samples):
            name = caches.latent_name(picture)
            writer.add(name, {"latent": torch.full_like(caches.latents.read(name)["latent"], float("nan"))})


def run_in_process(
    job: TrainJob, out: Path, cache: Path, stop_before: int | None = None, run_dir: RunDir | None = None
) -> dict:
    """Run in this process; the stop is wished for before that step. `run_dir` goes on with a run of another job."""
    run_dir = run_dir or run_dir_for(job, out)
    run_dir.root.mkdir(parents=True, exist_ok=True)
    seen: list[dict] = []
    events = EventLog(run_dir.events_path, seen.append)

    def should_stop() -> bool:
        steps = [event["step"] for event in seen if event["event"] == "step"]
        return stop_before is not None and bool(steps) and steps[-1] >= stop_before

    try:
        return run(prepare(job), RunContext(run_dir, cache, events, should_stop))
    finally:
        events.close()
