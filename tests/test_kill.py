"""A power cut at any moment costs time and nothing else: the run that goes on ends with the bytes of the undisturbed one.

The trainer is a real process, killed with SIGKILL: at random moments, and each second time as soon as a checkpoint is seen to
be half written. FLUX_LORA_KILLS sets how often each optimiser is killed: few in CI, 20 before a release.
"""

import contextlib
import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

from support import job_data, make_pictures, run_in_process
from trainer_core.events import EventReader
from trainer_core.job_file import parse_job
from trainer_core.run_dir import RunDir, run_dir_for

KILLS = int(os.environ.get("FLUX_LORA_KILLS", "2"))
CLOCK = {"time", "seconds", "steps_per_second", "data_wait_share", "memory_gib", "path"}
LONGEST_LIFE = 0.4  # seconds until a random kill, from the training's start on


def train(data: dict, out: Path, cache: Path) -> None:
    """In the child."""
    run_in_process(parse_job(data), out, cache)


def told(run_dir: RunDir, kind: str) -> dict[int, dict]:
    """The last event of this kind for each step, without what the clock says: what a reader of the events believes."""
    events = [event for event in EventReader(run_dir.events_path).new() if event["event"] == kind]
    return {event["step"]: {name: value for name, value in event.items() if name not in CLOCK} for event in events}


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_bf16", "optimi-lion"])
def test_a_killed_run_ends_as_if_nothing_had_happened(tmp_path, cache, optimizer):
    datasets = [
        {"id": name, "instance_data_dir": str(make_pictures(tmp_path / name, count)), "repeats": repeats, **more}
        for name, count, repeats, more in (
            ("balls", 4, 1, {}),
            ("others", 3, 0, {"is_regularisation_data": True}),
            ("held-out", 2, 0, {"dataset_type": "eval"}),
        )
    ]
    data = job_data(
        tmp_path / "balls",
        optimizer={"optimizer": optimizer, "lr_scheduler": "cosine", "lr_warmup_steps": 2},
        flow={"caption_dropout_probability": 0.3},
        validation={"eval_steps_interval": 4},
        training={
            "max_train_steps": 8 + 2 * KILLS,
            "gradient_accumulation_steps": 2,
            "checkpoint_step_interval": 1,
            "use_ema": True,
            "log_interval": 3,
        },
    )
    data |= {"datasets": datasets, "routes": [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -2}]}
    job = parse_job(data)
    straight, run_dir = run_in_process(job, tmp_path / "straight", cache), run_dir_for(job, tmp_path / "killed")

    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["trainer_core.train", "trainer_core.optimizers", "bitsandbytes"])
    dice, deaths = random.Random(optimizer), 0
    while run_dir.result() is None:
        child = processes.Process(target=train, args=(data, tmp_path / "killed", cache))
        child.start()
        if deaths < KILLS:
            deaths += wait_and_kill(child, run_dir, dice, inside_save=deaths % 2 == 1)
        child.join(120)
        assert child.exitcode in (0, -9)

    assert deaths == KILLS, "it came to its end before it could be killed so often"
    resumed = run_dir.result()
    for name in ("lora", "ema_lora", "best_lora"):
        assert Path(resumed[name]).read_bytes() == Path(straight[name]).read_bytes(), name
    for name in ("losses", "evaluations", "best_step"):
        assert resumed[name] == straight[name]
    for kind in ("step", "metrics", "evaluation"):
        assert told(run_dir, kind) == told(RunDir(Path(straight["run_dir"])), kind)


def wait_and_kill(child, run_dir: RunDir, dice: random.Random, *, inside_save: bool) -> bool:
    """Kill the child at a random moment of its training, or inside a save; False if it had ended by itself."""
    life, starts, old = dice.uniform(0, LONGEST_LIFE), num_starts(run_dir), partials(run_dir)
    while child.is_alive() and num_starts(run_dir) == starts:
        time.sleep(0.002)  # its start, which is the same each time, would swallow most kills
    if inside_save:
        while child.is_alive() and partials(run_dir) <= old:
            time.sleep(0.0005)
    else:
        child.join(life)
    if not child.is_alive():
        return False
    child.kill()
    return True


def num_starts(run_dir: RunDir) -> int:
    return sum(event["event"] == "started" for event in EventReader(run_dir.events_path).new())


def partials(run_dir: RunDir) -> set[tuple[str, int]]:
    """The half-written checkpoints; the folder's number tells one from an older of its name."""
    found = set()
    for path in run_dir.checkpoints_dir.glob("*.partial"):
        with contextlib.suppress(FileNotFoundError):  # complete by now
            found.add((path.name, path.stat().st_ino))
    return found
