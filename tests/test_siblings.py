"""Changing only the number of steps goes on from what was trained already, and nobody could tell it from a straight run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support import Command, job_data, make_pictures
from trainer_core.events import EventReader
from trainer_core.job_file import parse_job
from trainer_core.run_dir import RunDir, run_dir_for
from trainer_core.setup import prepare
from trainer_core.siblings import same_until

CLOCK = {"time", "seconds", "steps_per_second", "data_wait_share", "memory_gib", "path", "compared"}


class Bench:
    """A job that is run with several lengths below one folder."""

    def __init__(self, folder: Path, cache: Path, data: dict[str, Any]):
        self._folder, self._cache, self._data = folder, cache, data

    def data(self, steps: int) -> dict[str, Any]:
        return self._data | {"training": self._data["training"] | {"max_train_steps": steps}}

    def run_dir(self, steps: int, out: str = "runs") -> RunDir:
        return run_dir_for(parse_job(self.data(steps)), self._folder / out)

    def command(self, steps: int, out: str = "runs") -> Command:
        path = self._folder / "job.json"
        path.write_text(json.dumps(self.data(steps)), encoding="utf-8")
        return Command("run", path, "--out", self._folder / out, "--cache", self._cache)

    def run(self, steps: int, out: str = "runs") -> dict[str, Any]:
        command = self.command(steps, out)
        assert command.code == 0, command.stderr
        return command.report


@pytest.fixture
def bench(tmp_path, cache):
    def make(**parts: Any) -> Bench:
        data = job_data(make_pictures(tmp_path / "pictures"), **parts)
        data["training"] |= {"checkpoint_step_interval": 2} | parts.get("training", {})
        return Bench(tmp_path, cache, data)

    return make


def contents(run_dir: RunDir) -> dict[str, bytes]:
    return {path.relative_to(run_dir.root).as_posix(): path.read_bytes() for path in run_dir.root.rglob("*") if path.is_file()}


def told(run_dir: RunDir, kind: str) -> list[dict[str, Any]]:
    """Without what the clock and the folder say."""
    events = [event for event in EventReader(run_dir.events_path).new() if event["event"] == kind]
    return [{name: value for name, value in event.items() if name not in CLOCK} for event in events]


def test_more_steps_go_on_and_end_with_the_bytes_of_a_straight_run(bench):
    job = bench(
        flow={"caption_dropout_probability": 0.3},
        validation={
            "num_validation_images": 1,
            "validation_num_inference_steps": 1,
            "num_held_out": 1,
            "eval_steps_interval": 2,
        },
        training={"use_ema": True, "log_interval": 2},
    )
    job.run(3)
    short = contents(job.run_dir(3))
    long, straight = job.run(5), job.run(5, "straight")
    for name in ("lora", "ema_lora"):
        assert Path(long[name]).read_bytes() == Path(straight[name]).read_bytes(), name
    for name in ("losses", "evaluations", "best_step"):
        assert long[name] == straight[name], name
    ours, theirs = job.run_dir(5), job.run_dir(5, "straight")
    for kind in ("metrics", "evaluation"):
        assert told(ours, kind) == told(theirs, kind), kind
    assert [event["step"] for event in told(ours, "step")] == list(range(1, 6))
    assert [event["resumed_from"] for event in told(ours, "started")] == [3]
    origin = {"run_id": job.run_dir(3).run_id, "step": 3, "exact": True}
    change = {"field": "training.max_train_steps", "old": 3, "new": 5}
    assert told(ours, "job_changed") == [{"event": "job_changed", "changes": [change], "begins_from": origin}]
    pictures = [Path(event["path"]) for event in EventReader(ours.events_path).new() if event["event"] == "sample"]
    assert len(pictures) == 3 and all(path.is_file() and ours.root in path.parents for path in pictures)

    assert contents(job.run_dir(3)) == short, "the shorter run must stay what it was"
    job.run(3)
    assert contents(job.run_dir(3)) == short
    shutil.rmtree(job.run_dir(3).root)
    fewer = job.run(4)
    assert fewer["losses"] == straight["losses"][:4]
    saved = load_file(theirs.checkpoints_dir / "step-00000004" / "lora" / "test.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in load_file(fewer["lora"]).items())
    assert told(job.run_dir(4), "started")[0]["resumed_from"] == 4


def test_a_schedule_free_optimiser_goes_on_as_exactly(bench):
    job = bench(optimizer={"optimizer": "adamw_schedulefree"})
    job.run(2)
    assert Path(job.run(3)["lora"]).read_bytes() == Path(job.run(3, "straight")["lora"]).read_bytes()
    assert told(job.run_dir(3), "started")[0]["resumed_from"] == 2


def test_with_a_rate_that_falls_to_the_end_a_longer_run_goes_on_and_says_what_it_is(bench):
    job = bench(optimizer={"lr_scheduler": "cosine"})
    job.run(4)
    command = job.command(6)
    assert "from step 4 of test-" in command.stderr and "not what training 6 steps in one go would give" in command.stderr
    assert json.loads(job.run_dir(6).origin_path.read_text())["exact"] is False
    assert told(job.run_dir(6), "started")[0]["resumed_from"] == 4
    job.run(2)
    assert told(job.run_dir(2), "started")[0]["resumed_from"] == 0, "a shorter one is trained as it should be"


def test_nothing_is_taken_from_a_run_that_is_being_trained_or_from_a_damaged_checkpoint(bench):
    job = bench()
    job.run(4)
    with job.run_dir(4).owned():
        refused = job.command(6)
    assert refused.code == 2 and "would go on from its step 4, but that run is being trained" in refused.report["error"]
    assert not job.run_dir(6).root.exists()
    adapter = job.run_dir(4).checkpoints_dir / "step-00000004" / "adapter.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"x")
    job.run(6)
    assert told(job.run_dir(6), "started")[0]["resumed_from"] == 2


def test_what_depends_on_the_length_is_known(pictures):
    routes = [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -2, "anneal_from": 0.5}]
    warm = {"lr_scheduler": "cosine", "lr_warmup_steps": 3}
    for parts, same, other in (({}, 6, None), ({"optimizer": warm}, 4, 5), ({"routes": routes}, 3, 4)):
        setup = prepare(parse_job(job_data(pictures, **parts, training={"max_train_steps": 8})))
        assert same_until(setup, same, 6)
        assert other is None or not same_until(setup, other, 6), parts


def test_a_run_that_was_gone_on_with_under_another_job_is_not_taken_for_this_one(bench, tmp_path, cache):
    job = bench()
    job.run(2)
    path = tmp_path / "longer.json"
    path.write_text(json.dumps(job.data(3)))
    assert Command("resume", job.run_dir(2).root, "--job", path, "--cache", cache).code == 0
    refused = job.command(2)
    assert refused.code == 2 and "has gone on with another job" in refused.report["error"]
    job.run(4)
    assert told(job.run_dir(4), "started")[0]["resumed_from"] == 3, "it is a longer run all the same"
