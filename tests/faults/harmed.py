"""The run that is harmed: small, but with every phase, and over in seconds; how it is started, and how it should have ended.

Pico in float32 on the CPU, five pictures of which one is held out, a mask beside each, a picture every few steps, a checkpoint
every other one, a running average. A trainer is a process of its own: forked from one that has the libraries already, so that
its life is spent in the phases and not in imports, and then the program itself, `flux-lora run`.
"""

import contextlib
import gc
import json
import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from trainer_core.cli import main
from trainer_core.job_file import dump_job, load_job, parse_job
from trainer_core.run_dir import RunDir, run_dir_for

from ..support import job_data, make_pictures

STEPS = 12
PRELOADED = [
    "trainer_core.launch",
    "trainer_core.optimizers",
    "bitsandbytes",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    __name__,
]
COMPARED = ("losses", "evaluations", "best_step", "scores", "verified_keys")
TEMPORARY = (".tmp", ".partial", ".taken", "-journal")

MOST_SHOWN = 3000  # characters

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(PRELOADED)


class Harmed(NamedTuple):
    """A job in a file, and where its run and its cache go. `starter` tells the logs of two starts at once apart."""

    job: Path
    out: Path
    starter: str = ""

    @property
    def run_dir(self) -> RunDir:
        return run_dir_for(load_job(self.job), self.out)

    @property
    def log(self) -> Path:
        """What the start that came last has printed."""
        return Path(f"{self.out}{self.starter}.log")

    @property
    def steps(self) -> int:
        return load_job(self.job).training.max_train_steps

    def beside(self, name: str) -> "Harmed":
        """The same job in another folder."""
        return self._replace(out=self.out.with_name(name))


def make_harmed(folder: Path, *, small: bool = False, **training: Any) -> Harmed:
    """The job and its pictures below a folder, to be run in its subfolder `straight`. `small` adapts few layers of rank 1, and
    pictures and evaluations are rare."""
    pictures, masks = make_pictures(folder / "pictures", 5), folder / "masks"
    masks.mkdir()
    for path in pictures.glob("*.png"):
        with Image.open(path) as picture:
            Image.new("L", picture.size, 200).save(masks / path.name)
    data = job_data(
        pictures,
        lora={
            "lora_rank": 1,
            "flux_lora_target": "custom",
            "peft_lora_target_modules": ["single_transformer_blocks.3.proj_out"],
        }
        if small
        else {"lora_rank": 2},
        optimizer={"lr_scheduler": "cosine"},
        validation={
            "num_validation_images": 2,
            "validation_num_inference_steps": 2,
            "validation_step_interval": 1000 if small else 5,
            "validation_resolution": "64x64",
            "num_held_out": 1,
            "eval_steps_interval": 500 if small else 4,
        },
        training={
            "max_train_steps": STEPS,
            "train_batch_size": 1,
            "checkpoint_step_interval": 2,
            "checkpoints_total_limit": 3,
            "use_ema": True,
            "skip_memory_check": True,
            **training,
        },
    )
    data["datasets"][0] |= {"mask_data_dir": str(masks), "resolution": [64]}
    job = folder / "job.json"
    job.write_text(dump_job(parse_job(data)), encoding="utf-8")
    return Harmed(job, folder / "straight")


def start(harmed: Harmed, *, by_folder: bool = False) -> BaseProcess:
    """The trainer, on its way; what it prints goes to its log."""
    words = ["resume", harmed.run_dir.root] if by_folder else ["run", harmed.job]
    child = processes.Process(target=_train, args=([*map(str, words), "--out", str(harmed.out)], str(harmed.log)))
    child.start()
    return child


def finish(harmed: Harmed, *, by_folder: bool = False) -> int:
    """Start it and wait for its end; its exit code. `by_folder` goes on with what lies there, without the job."""
    child = start(harmed, by_folder=by_folder)
    child.join()
    return child.exitcode


def report_of(harmed: Harmed) -> dict[str, Any]:
    """What the trainer that ended last has printed as its last line, or nothing where it did not get so far."""
    lines = harmed.log.read_text(encoding="utf-8", errors="replace").splitlines()
    with contextlib.suppress(IndexError, ValueError):
        return json.loads(lines[-1])
    return {}


def said(harmed: Harmed) -> str:
    """The end of what it has printed."""
    return harmed.log.read_text(encoding="utf-8", errors="replace")[-MOST_SHOWN:]


def make_straight(folder: Path, **training: Any) -> Harmed:
    """A run that was left alone to its end, to hold others against."""
    straight = make_harmed(folder, **training)
    assert finish(straight) == 0, said(straight)
    return straight


def differences(harmed: Harmed, straight: Harmed) -> list[str]:
    """In what the run ended otherwise than the undisturbed one: numbers of its result, bytes of its LoRAs and pictures."""
    mine, theirs = harmed.run_dir.result(), straight.run_dir.result()
    assert mine is not None and theirs is not None, "one has not ended"
    found = [name for name in COMPARED if mine[name] != theirs[name]]
    pairs = [(mine[name], theirs[name]) for name in ("lora", "ema_lora", "best_lora")]
    pairs += zip(mine["samples"], theirs["samples"], strict=True)
    return found + [ours for ours, other in pairs if Path(ours).read_bytes() != Path(other).read_bytes()]


def leftovers(folder: Path) -> list[str]:
    """Temporary files, and commands that nobody took, below the folder."""
    paths = (path for path in folder.rglob("*") if path.name.endswith(TEMPORARY) or path.name.startswith("control"))
    return sorted(path.relative_to(folder).as_posix() for path in (*paths, *folder.rglob("owner.json")))


def _train(words: list[str], log: str) -> None:
    """In the child."""
    gc.freeze()  # the libraries are no garbage, and are not searched in each life again
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(main([*words, "--json"]))
