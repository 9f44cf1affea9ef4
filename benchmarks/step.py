"""Our training step against a hand-written loop: python -m benchmarks.step [--model M] [--pixels P] [--pairs N] [--json]

Both train the same transformer with the same adapter, optimiser, batch and text length on the same samples. The bare loop is
what a knowledgeable person writes in ten lines: batches ready in memory, noise and sigma from the global generator, forward,
squared error, backward, clip, update, and no state, event, check or file anywhere; eager, every token, and with `--recompute`
every block recomputed as diffusers does it. Ours is `train.train`, all of it: drawing by (seed, step, purpose), reading the
caches, reports, guards, commands. (Checkpoints and pictures are left out: they cost what they cost, when asked for.)

The two alternate in one process, step by step, because a shared machine is never equally fast twice: each step of ours is
compared with the bare one just before it. `ratio_to_bare` is the median of these pairs, and `between` is where the true median
lies with 95 % (by their order, whatever their distribution). Without anything that saves work that is our overhead: at most
1.03 with pico, whose step is short, else 1.01. `--tread`, `--every` and `--compile` save work, on our side alone.

`pico` is the built-in base, `100m` has 2 + 6 blocks of width 768, `full` has FLUX.1's own width of 3072 and as many blocks as
`--double` and `--single` say; the last two have random weights and 512 tokens of text.
"""

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch

from trainer_core import demo, flow
from trainer_core.adapter.plan import plan_adapter
from trainer_core.caching import fill_caches
from trainer_core.context import RunContext
from trainer_core.data.batches import Batch, BatchPlan
from trainer_core.data.encode import Caches
from trainer_core.events import Event, EventLog
from trainer_core.flux.compiling import as_written
from trainer_core.flux.load import empty_transformer
from trainer_core.flux.predict import predict_velocity
from trainer_core.flux.recompute import recompute_layers
from trainer_core.job import TrainJob
from trainer_core.job_file import parse_job
from trainer_core.optim import make_clip
from trainer_core.run_dir import RunDir
from trainer_core.setup import Setup, prepare
from trainer_core.train import open_run, train
from trainer_core.trainee import Trainee, build_trainee
from trainer_core.tread import resolve_routes

from .encoding import make_photos
from .random_flux import FULL, original_shapes, write_random

BARS = {"pico": 1.03, "100m": 1.01, "full": 1.01}
PAIRS = {"pico": 200, "100m": 60, "full": 20}
WARM_UP = 2  # pairs that are not counted
NUM_PICTURES = 4
NUM_TEXT = 512


@dataclass(frozen=True)
class Case:
    """What is measured: the fields of the command line."""

    model: str = "pico"
    pixels: int = 0  # 0: the demo's pictures
    dtype: str = "no"
    precision: str = "no_change"
    batch: int = 0  # 0: 8 with pico, else 1
    rank: int = 16
    double: int = 1
    single: int = 1
    recompute: bool = False
    every: int = 1  # of the blocks is recomputed on our side; 0: none
    tread: float = 0.0
    compile: bool = False
    pictures: int = NUM_PICTURES  # where pixels are given
    datasets: int = 1
    prompts: int = 0  # pictures of the run


class Bench:
    """A run that is ready to train, a few steps at a time, on both sides."""

    def __init__(self, case: Case, folder: Path, setup: Setup | None = None):
        self.case = case
        self.setup = setup or make_setup(case, folder)
        self.times: list[float] = []
        self._bare_times: list[float] | None = None  # of the steps between ours, where the two alternate
        run_dir = RunDir(folder / "run")
        run_dir.root.mkdir()
        self.context = RunContext(run_dir, folder / "cache", EventLog(run_dir.events_path, self._clock), lambda: False)
        open_run(self.setup, self.context)
        self.caches = fill_caches(self.setup, self.context)
        self.trainee = build_trainee(self.setup, self.context)
        self.plan = batch_plan(self.setup, self.caches)
        self._layers = self.setup.recomputed_layers

    def _clock(self, event: Event) -> None:
        if event["event"] != "step":
            return
        self.times.append(time.perf_counter())
        if self._bare_times is not None:
            self._bare_times += self.bare(1)
            self.times.append(time.perf_counter())

    def pairs(self, count: int) -> list[tuple[float, float]]:
        """Seconds of a bare step, then of one of `train.train`, so many times; returned as (ours, bare)."""
        self._bare_times = []
        self.ours(count)
        ours = [later - earlier for earlier, later in pairwise(self.times)][1::2]
        bare, self._bare_times = self._bare_times, None
        return list(zip(ours, bare[:-1], strict=True))

    def ours(self, steps: int) -> list[float]:
        """Seconds of each of so many more steps of `train.train`; the first has no beginning, so one more is made."""
        self._recompute_ours()
        self.times.clear()
        train(replace(self.setup, num_steps=self.trainee.history.step + steps + 1), self.trainee, self.caches, self.context)
        return [later - earlier for earlier, later in pairwise(self.times)]

    def _recompute_ours(self) -> None:
        if self.case.recompute:
            recompute_layers(self.trainee.transformer, self._layers if self.case.every else ())

    def bare(self, steps: int) -> list[float]:
        """The same of the hand-written loop."""
        if self.case.recompute:
            self.trainee.transformer.enable_gradient_checkpointing()
        first = self.trainee.history.step
        batches = [self.plan.batch(number) for number in range(first, first + steps)]
        with as_written(compiled=self.setup.compiles):
            times = list(bare_steps(self.trainee, batches, self.setup))
        self._recompute_ours()
        return times


def measure(case: Case, count: int, folder: Path) -> dict[str, Any]:
    """The median of so many ratios ours / bare, how sure it is, and the seconds a step of both."""
    bench = Bench(case, folder)
    began = time.perf_counter()
    bench.ours(1)
    first = time.perf_counter() - began
    pairs = bench.pairs(WARM_UP + count)[WARM_UP:]
    ratios = sorted(ours / bare for ours, bare in pairs)
    ratio, saves = statistics.median(ratios), case.tread or case.compile or (case.recompute and case.every != 1)
    return {
        "case": vars(case),
        "parameters": sum(parameter.numel() for parameter in bench.trainee.transformer.parameters()),
        "ratio_to_bare": round(ratio, 4),
        "between": [round(value, 4) for value in around_median(ratios)],
        "pairs": count,
        "seconds_ours": round(statistics.median(ours for ours, _ in pairs), 4),
        "seconds_bare": round(statistics.median(bare for _, bare in pairs), 4),
        "two_warm_up_steps": round(first, 2),
        "bar": None if saves else BARS[case.model],
        "met": None if saves else ratio <= BARS[case.model],
        "machine": machine(),
    }


def around_median(ordered: list[float]) -> tuple[float, float]:
    """Between which of these the median of what they were drawn from lies with 95 %, by the binomial distribution."""
    count = len(ordered)
    spread = 0.98 * math.sqrt(count)
    return ordered[max(0, math.floor(count / 2 - spread))], ordered[min(count - 1, math.ceil(count / 2 + spread))]


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def bare_steps(trainee: Trainee, batches: list[Batch], setup: Setup) -> Iterator[float]:
    """The hand-written loop over these batches; the seconds of each step."""
    transformer, optimizer = trainee.transformer.train(), trainee.optimizer
    parameters = list(trainee.parameters.values())
    clip = make_clip(setup.job.optimizer)
    for batch in batches:
        began = time.perf_counter()
        B = len(batch.latent_BCHW)
        noise = torch.randn_like(batch.latent_BCHW)
        sigma = torch.sigmoid(torch.randn(B))
        x = flow.add_noise(batch.latent_BCHW, noise, sigma)
        velocity = predict_velocity(transformer, x, sigma, batch.text_BLD, batch.pooled_BP, torch.full((B,), 1.0))
        loss = (velocity - (noise - batch.latent_BCHW)).square().mean()
        loss.backward()
        clip(parameters)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        yield time.perf_counter() - began


def batch_plan(setup: Setup, caches: Caches) -> BatchPlan:
    """The batches of the run, without dropped captions."""
    training = setup.job.training
    return BatchPlan(setup.samples, caches, batch_size=training.train_batch_size, caption_dropout=0.0, seed=training.seed)


def make_setup(case: Case, folder: Path) -> Setup:
    """The demo's job on pico, or on random weights that take pico's texts and latents."""
    setup = prepare(make_job(case, folder))
    if case.model == "pico":
        return setup
    if case.model == "full":
        shape = replace(setup.shape, num_double=case.double, num_single=case.single, width=FULL.width)
    else:
        shape = replace(setup.shape, num_double=2, num_single=6, width=768)
    path = folder / "random.safetensors"
    write_random(path, original_shapes(shape))
    adapter = plan_adapter(empty_transformer(shape), setup.job.lora, quantised=case.precision != "no_change")
    spans = resolve_routes(setup.job.routes, shape.num_double + shape.num_single, setup.num_steps)
    return replace(
        setup,
        shape=shape,
        spans=spans,
        adapter=adapter,
        files=replace(setup.files, transformer=path),
        flavour=replace(setup.flavour, t5_max_length=NUM_TEXT),
    )


def make_job(case: Case, folder: Path) -> TrainJob:
    """As the case says, else the demo's; the route leaves out the first and the last layer."""
    job = demo.demo_job().model_dump(mode="json")
    job["base"] |= {"mixed_precision": case.dtype, "base_model_precision": case.precision}
    job["lora"] |= {"lora_rank": case.rank} | ({} if case.model == "pico" else {"flux_lora_target": "all"})
    job["flow"]["caption_dropout_probability"] = 0.0
    job["validation"]["validation_prompts"] = ["a ball"] * case.prompts
    if not case.prompts:
        job["validation"]["num_validation_images"] = 0  # else the prompts are the number
    job["training"] |= {
        "train_batch_size": case.batch or (8 if case.model == "pico" else 1),
        "checkpoint_step_interval": 0,
        "device": "cpu",
        "gradient_checkpointing": case.recompute,
        "gradient_checkpointing_interval": max(1, case.every) if case.recompute else 1,
        "torch_compile": "on" if case.compile else "off",
    }
    if case.pixels:
        each = {"resolution": case.pixels, "caption_strategy": "filename"}
        count = case.pictures // case.datasets
        places = [make_photos(folder / f"pictures {number}", count, case.pixels) for number in range(case.datasets)]
        job["datasets"] = [{"id": f"{number}", "instance_data_dir": str(place), **each} for number, place in enumerate(places)]
    if case.tread:
        job["routes"] = [{"selection_ratio": case.tread, "start_layer_idx": 1, "end_layer_idx": -2}]
    return parse_job(job)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=BARS, default="pico")
    parser.add_argument("--pixels", type=int, default=0, help="edge of the pictures; 0: the demo's")
    parser.add_argument("--dtype", choices=("no", "bf16"), default="no", help="no is float32")
    parser.add_argument("--precision", default="no_change")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--double", type=int, default=1)
    parser.add_argument("--single", type=int, default=1)
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    parser.add_argument("--every", type=int, default=1, help="ours recomputes every so-manieth block; 0: none")
    parser.add_argument("--tread", type=float, default=0.0, metavar="RATIO")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--pairs", type=int, default=0, help=f"by the model, unless given: {PAIRS}")
    parser.add_argument("--json", action="store_true")
    arguments = vars(parser.parse_args())
    pairs, as_json = arguments.pop("pairs"), arguments.pop("json")
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Case(**arguments), pairs or PAIRS[arguments["model"]], Path(folder))
    print(json.dumps(report) if as_json else "\n".join(f"{name}: {value}" for name, value in report.items()))


if __name__ == "__main__":
    main()
