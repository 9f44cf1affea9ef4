"""report_to: the run's curves, pictures and settings in TensorBoard and Weights & Biases, read back from their files."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import Command, job_data
from trainer_core.errors import JobError
from trainer_core.job_file import parse_job
from trainer_core.run_dir import run_dir_for
from trainer_core.setup import prepare
from trainer_core.trackers import PACKAGES, numbers_of

VALIDATION = {
    "user_prompt_library": '{"ball": "a ball"}',
    "validation_num_inference_steps": 1,
    "num_validation_images": 4,
    "num_held_out": 1,
    "eval_steps_interval": 2,
    "eval_timesteps": 2,
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, pictures, cache) -> Path:
    """A run of four steps that was reported to both."""
    for package in PACKAGES["all"]:
        pytest.importorskip(package, reason=f"pip install {package}")
    folder = tmp_path_factory.mktemp("tracked")
    training = {"max_train_steps": 4, "log_interval": 2, "report_to": "all", "tracker_project_name": "balls"}
    path = folder / "job.json"
    path.write_text(json.dumps(job_data(pictures, validation=VALIDATION, training=training)))
    done = Command("run", path, "--out", folder, "--cache", cache)
    assert done.code == 0, done.stderr
    return Path(done.report["run_dir"])


def events(run_dir: Path, kind: str) -> list[dict]:
    lines = (run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_tensorboard_has_the_curves_the_pictures_and_the_job(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run_dir / "tensorboard"))
    read.Reload()
    for kind in ("metrics", "evaluation"):
        for event in events(run_dir, kind):
            for name, value in numbers_of(event).items():
                (found,) = (point.value for point in read.Scalars(name) if point.step == event["step"])
                assert found == pytest.approx(value, rel=1e-6)
    assert {"train/loss", "held_out/loss", "held_out/pictures held out/0.25", "memory/ram_gib"} <= set(read.Tags()["scalars"])
    shown = read.Images("samples/ball")
    assert [(picture.step, picture.width, picture.height) for picture in shown] == [(0, 64, 64), (4, 64, 64)]
    (settings,) = read.Tensors("job/text_summary")
    assert '"tracker_project_name": "balls"' in settings.tensor_proto.string_val[0].decode()


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run: after seven bytes of header, blocks of 32 KiB with pieces of records in them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = (1 << 15) - at % (1 << 15)
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record, at = record + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(record)
            record = b""


def test_weights_and_biases_has_them_too_and_nothing_was_sent(run_dir):
    (path,) = (run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    records, by_step = list(wandb_records(path)), {}
    for record in records:
        if record.HasField("history"):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            by_step.setdefault(int(row["_step"]), {}).update(row)
    for kind in ("metrics", "evaluation"):
        for event in events(run_dir, kind):
            row = by_step[event["step"]]
            assert all(row[name] == pytest.approx(value) for name, value in numbers_of(event).items())
    assert [step for step, row in by_step.items() if "samples/ball/path" in row] == [0, 4]
    (project,) = {record.run.project for record in records if record.HasField("run")}
    assert project == "balls"


def test_a_missing_package_is_named_before_any_training(monkeypatch, pictures):
    for package, others in (("tensorboard", ("tensorboard", "all")), ("wandb", ("wandb", "all"))):
        monkeypatch.setitem(sys.modules, package, None)
        for choice in others:
            with pytest.raises(JobError, match=f"pip install .*{package}, or set report_to to 'none'"):
                prepare(parse_job(job_data(pictures, training={"report_to": choice})))
        monkeypatch.undo()


def test_reporting_makes_no_other_run_of_a_job(pictures, tmp_path):
    plain, reported = (parse_job(job_data(pictures, training={"report_to": choice})) for choice in ("none", "tensorboard"))
    assert run_dir_for(plain, tmp_path) == run_dir_for(reported, tmp_path)


def test_scores_are_curves_by_picture():
    score = {"event": "score", "step": 3, "picture": "step-000003-ema/ball", "prompt": "", "clip_score": 30.0, "likeness": 5.0}
    assert numbers_of(score) == {"clip_score/ball (average)": 30.0, "likeness/ball (average)": 5.0}
