"""Host memory on the CPU at FLUX.1's size: python -m benchmarks.host_memory --precision nf4-bnb --train 256 --json

Writes a file with random weights of the wanted number of blocks (19 and 38 are FLUX.1: 23.8 GB on disk) unless it is there,
then loads it as a run does. Bars at full size: 9 GiB for nf4-bnb, 15 GiB for int8-quanto. `--train` adds one training step at
that size in pixels (rank 16, all+ffs, gradient checkpointing) and sets what it took beside what the plan says. `--t5` loads the
T5 XXL encoder instead and encodes a caption (bar: 6 GiB in int8-quanto).
`--small` takes a model of a hundredth of the size, only to see that it runs.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from transformers import T5EncoderModel

from trainer_core.adapter.plan import plan_adapter
from trainer_core.data.buckets import Bucket
from trainer_core.data.sample import Facts, Sample
from trainer_core.flavour_check import flow_of
from trainer_core.flux.dialects import open_t5
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.flux.load import empty_transformer, open_weights
from trainer_core.flux.predict import predict_velocity
from trainer_core.flux.quantize import stored_bytes
from trainer_core.flux.text import load_t5, t5_config
from trainer_core.host_memory import give_back_at_once
from trainer_core.job_file import parse_job
from trainer_core.optimizers import make_optimizer
from trainer_core.plan.phases import HOST_FLOOR, encoder_bytes, transformer_phases
from trainer_core.setup import Setup
from trainer_core.trainee import load_base, make_trainable
from trainer_core.validation.sample import sampler_settings

from .memory import anonymous_bytes, watched
from .random_flux import FULL, SMALL, original_shapes, t5_shapes, write_random

CPU = torch.device("cpu")


def make_setup(path: Path, precision: str, pixels: int, *, device: torch.device = CPU, blocks_to_swap: int = 0) -> Setup:
    """A job on the random file with one picture of that size: rank 16, all+ffs, gradient checkpointing."""
    shape = open_weights(path).shape
    job = parse_job(
        {
            "datasets": [{"instance_data_dir": "."}],
            "base": {"base_model_precision": precision, "blocks_to_swap": blocks_to_swap},
            "lora": {"lora_rank": 16, "flux_lora_target": "all+ffs"},
            "training": {"max_train_steps": 1, "device": "cpu"},
            "validation": {"num_validation_images": 0},
        }
    )
    flavour = FLAVOURS["dev"]
    return Setup(
        job=job,
        flow=flow_of(job),
        flavour=flavour,
        files=replace(PICO_FILES, transformer=path),
        shape=shape,
        spans=(),
        adapter=plan_adapter(empty_transformer(shape), job.lora, quantised=precision != "no_change"),
        initial={},
        samples=(Sample("", str(path), ("",), Facts(pixels, pixels, ""), Bucket(pixels, pixels), ()),),
        eval_samples=(),
        rejected=(),
        num_steps=1,
        shots=(),
        sampler=sampler_settings(job.validation, flavour),
        device=device,
        dtype=torch.bfloat16,
    )


def load(setup: Setup) -> tuple[dict[str, Any], FluxTransformer2DModel]:
    """Load and quantise; what it took, and the transformer."""
    weights = open_weights(setup.files.transformer)
    with watched() as seen:
        transformer = load_base(setup, weights)
    kept = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    empty = empty_transformer(setup.shape)
    whole = [*empty.transformer_blocks, *empty.single_transformer_blocks]
    return {
        **seen,
        "quantised_bytes": stored_bytes(transformer),
        "largest_block_bytes": max(map(stored_bytes, kept)),
        "largest_block_in_file_bytes": max(2 * sum(tensor.numel() for tensor in block.parameters()) for block in whole),
    }, transformer


def train(setup: Setup, transformer: FluxTransformer2DModel) -> dict[str, Any]:
    """One step; what it took."""
    shape, bucket = setup.shape, setup.samples[0].bucket
    with watched() as seen:
        parameters = make_trainable(setup, transformer, open_weights(setup.files.transformer))
        optimizer = make_optimizer(setup.job.optimizer, list(parameters.values()), 0)
        transformer.train()
        prediction = predict_velocity(
            transformer,
            torch.randn(1, 16, bucket.height // 8, bucket.width // 8),
            torch.tensor([0.5]),
            torch.randn(1, setup.flavour.t5_max_length, shape.t5_width),
            torch.randn(1, shape.clip_width),
            torch.tensor([1.0]),
        )
        prediction.square().mean().backward()
        optimizer.step()
    return seen


def encode(path: Path, precision: str) -> dict[str, Any]:
    """Load T5 and encode one caption of 512 tokens; what it took."""
    with torch.device("meta"):
        skeleton = T5EncoderModel(t5_config(open_t5(path)))
    planned = HOST_FLOOR["cpu"] + sum(encoder_bytes(skeleton, precision, torch.bfloat16, 1, 512))
    with watched() as seen:
        t5 = load_t5(path, torch.bfloat16, CPU, precision)
        with torch.no_grad():
            t5(torch.ones(1, 512, dtype=torch.long))
    return {**seen, "quantised_bytes": stored_bytes(t5), "planned_bytes": planned}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--double", type=int, default=FULL.num_double)
    parser.add_argument("--single", type=int, default=FULL.num_single)
    parser.add_argument("--precision", default="nf4-bnb")
    parser.add_argument("--file", type=Path, help="where the random weights are, or will be; else in a temporary folder")
    parser.add_argument("--train", type=int, default=0, metavar="PIXELS")
    parser.add_argument("--t5", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    give_back_at_once()
    report: dict[str, Any] = {"precision": arguments.precision, "before_bytes": anonymous_bytes()}
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.file or Path(folder) / "weights.safetensors"
        if arguments.t5:
            write_random(path, t5_shapes(is_small=arguments.small))
            report |= encode(path, arguments.precision)
        else:
            blocks = {"num_double": arguments.double, "num_single": arguments.single}
            shape = SMALL if arguments.small else replace(FULL, **blocks)
            write_random(path, original_shapes(shape))
            setup = make_setup(path, arguments.precision, arguments.train or 256)
            plan = {phase.name: phase.host for phase in transformer_phases(setup)}
            loaded, transformer = load(setup)
            report |= {"blocks": [shape.num_double, shape.num_single], **loaded, "planned_bytes": plan["load"]}
            if arguments.train:
                report["train"] = {**train(setup, transformer), "planned_bytes": plan["train"]}
    print(json.dumps(report) if arguments.json else "\n".join(f"{name}: {value}" for name, value in report.items()))


if __name__ == "__main__":
    main()
