"""How each side of `peers.py` is started: what its users would write, for one case and the same inputs.

A side is a function of the case, the inputs and a folder of its own; it writes what the side reads there and says the command.
"""

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from trainer_core.adapter.targets import TARGET_SUFFIXES

from .peer_inputs import CAPTION, Inputs, write_json

HERE = Path(__file__).resolve().parent
LEARNING_RATE, GUIDANCE = 1e-4, 3.5


@dataclass(frozen=True)
class Case:
    """What each side is asked to do."""

    pixels: int
    rank: int
    dtype: str
    recompute: bool
    steps: int
    most: float  # seconds


class Start(NamedTuple):
    """How a side is started, and what it is to find in its environment."""

    command: list[str]
    environment: Mapping[str, str]


Side = Callable[[Case, Inputs, Path], Start]  # the folder is one of its own


def ours(case: Case, inputs: Inputs, folder: Path) -> Start:
    """`flux-lora run` of a job. With `recompute` gradient checkpointing is on as its users turn it on: for as many blocks as
    the memory there is asks for."""
    return our_job(case, inputs, folder, interval=0)


def ours_all_recomputed(case: Case, inputs: Inputs, folder: Path) -> Start:
    """The same with every block recomputed, as the peers do."""
    return our_job(case, inputs, folder, interval=1)


def our_job(case: Case, inputs: Inputs, folder: Path, *, interval: int) -> Start:
    dataset = {"instance_data_dir": str(inputs.pictures), "resolution": case.pixels}
    job = {
        "base": {
            "model_flavour": "dev",
            "pretrained_model_name_or_path": str(inputs.folder),
            "mixed_precision": case.dtype,
        },
        "datasets": [dataset | {"caption_strategy": "instanceprompt", "instance_prompt": CAPTION}],
        "lora": {"lora_rank": case.rank, "flux_lora_target": "all"},
        "optimizer": {"learning_rate": LEARNING_RATE, "lr_scheduler": "constant"},
        "flow": {"flux_guidance_value": GUIDANCE},
        "validation": {"num_validation_images": 0},
        "training": {
            "max_train_steps": case.steps,
            "checkpoint_step_interval": 0,
            "gradient_checkpointing": case.recompute,
            "gradient_checkpointing_interval": interval,
            "device": "cpu",
        },
    }
    path = write_json(folder / "job.json", job)
    return Start(
        [sys.executable, "-m", "trainer_core", "run", str(path), "--out", str(folder / "runs")], python_path(HERE.parent)
    )


def diffusers_script(python: Path, script: Path) -> Side:
    """Diffusers' own training script."""

    def start(case: Case, inputs: Inputs, folder: Path) -> Start:
        options = {
            "pretrained_model_name_or_path": inputs.folder,
            "instance_data_dir": inputs.pictures,
            "instance_prompt": CAPTION,
            "output_dir": folder / "out",
            "resolution": case.pixels,
            "rank": case.rank,
            "lora_alpha": case.rank,
            "lora_layers": ",".join(TARGET_SUFFIXES["all"]),
            "mixed_precision": case.dtype,
            "learning_rate": LEARNING_RATE,
            "lr_warmup_steps": 0,
            "guidance_scale": GUIDANCE,
            "train_batch_size": 1,
            "max_train_steps": case.steps,
            "seed": 0,
        }
        flags = ["--center_crop", "--cache_latents", *(["--gradient_checkpointing"] if case.recompute else [])]
        return Start([str(python), str(script), *(f"--{name}={value}" for name, value in options.items()), *flags], {})

    return start


def simpletuner(python: Path) -> Side:
    """SimpleTuner's command line, with its dropout of 0.1 turned off."""

    def start(case: Case, inputs: Inputs, folder: Path) -> Start:
        square = {
            "resolution": case.pixels,
            "resolution_type": "pixel",
            "crop": True,
            "crop_aspect": "square",
            "crop_style": "center",
        }
        pictures = {"id": "pictures", "type": "local", "instance_data_dir": str(inputs.pictures), **square}
        pictures |= {"caption_strategy": "instanceprompt", "instance_prompt": CAPTION, "minimum_image_size": 0, "repeats": 100}
        pictures |= {"cache_dir_vae": str(folder / "vae")}
        text = {
            "id": "text",
            "type": "local",
            "dataset_type": "text_embeds",
            "default": True,
            "cache_dir": str(folder / "text"),
        }
        config = {
            "model_family": "flux",
            "model_type": "lora",
            "pretrained_model_name_or_path": str(inputs.folder),
            "data_backend_config": str(write_json(folder / "data.json", [pictures, text])),
            "output_dir": str(folder / "out"),
            "lora_rank": case.rank,
            "lora_alpha": case.rank,
            "lora_dropout": 0.0,
            "flux_lora_target": "all",
            "mixed_precision": case.dtype,
            "optimizer": {"bf16": "adamw_bf16", "no": "optimi-adamw"}[case.dtype],
            "learning_rate": LEARNING_RATE,
            "lr_scheduler": "constant",
            "gradient_checkpointing": case.recompute,
            "train_batch_size": 1,
            "torch_num_threads": num_threads(),
            "max_train_steps": case.steps,
            "num_train_epochs": 0,
            "report_to": "none",
            "validation_disable": True,
            "seed": 0,
        }
        write_json(folder / "work" / "config.json", config)
        path = os.pathsep.join((str(python.parent), os.environ["PATH"]))  # it starts accelerate by name
        environment = {"PATH": path, "MIXED_PRECISION": case.dtype, "PEER_UNPINNED": "1"}
        return Start([str(python), "-m", "simpletuner", "train"], environment)

    return start


def comfyui(python: Path, home: Path) -> Side:
    """ComfyUI's TrainLoraNode."""

    def start(case: Case, inputs: Inputs, folder: Path) -> Start:
        request = vars(case) | {"learning_rate": LEARNING_RATE, "guidance": GUIDANCE}
        places = {"model": str(inputs.original), "encoded": str(inputs.encoded)}
        path = write_json(folder / "request.json", request | places)
        driver = shutil.copy(HERE / "peer_comfyui.py", folder)
        command = [str(python), str(driver), "--cpu", "--use-pytorch-cross-attention"]
        return Start(command, python_path(home) | {"PEER_REQUEST": str(path)})

    return start


def python_path(place: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(place)}


def num_threads() -> int:
    return os.cpu_count() or 1
