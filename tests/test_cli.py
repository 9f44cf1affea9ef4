"""Exit codes, messages and the JSON line of every command; wrong input leaves nothing behind."""

import json
from pathlib import Path

import pytest
from PIL import Image

from support import Command, job_data, make_pictures
from trainer_core.job_file import parse_job
from trainer_core.setup import prepare


@pytest.fixture
def start(tmp_path):
    """Write the job, give it to `check` and `run`; both must refuse it alike, and write nothing."""

    def refuse(data: dict) -> str:
        path = tmp_path / "job.json"
        path.write_text(json.dumps(data), encoding="utf-8")
        command = Command("run", path, "--out", tmp_path / "runs")
        assert command.code == 2 and command.report["exit_code"] == 2, command.stderr
        assert command.report["error"] in command.stderr and "Traceback" not in command.stderr
        assert not list((tmp_path / "runs").glob("test-*"))
        return command.report["error"]

    return refuse


def test_an_empty_folder(start, tmp_path):
    (tmp_path / "empty").mkdir()
    assert f"no pictures in {tmp_path / 'empty'}; put some there" in start(job_data(tmp_path / "empty"))


def test_a_dataset_of_unreadable_pictures(start, tmp_path):
    folder = make_pictures(tmp_path / "pictures", 1)
    (folder / "ball_0.png").write_bytes((folder / "ball_0.png").read_bytes()[:100])
    assert "none of its 1 pictures can be trained on: is cut off: its end is missing" in start(job_data(folder))


def test_a_caption_in_a_wrong_encoding(start, tmp_path):
    folder = make_pictures(tmp_path / "pictures")
    (folder / "ball_2.txt").write_bytes(b"a ball\x81")
    assert "ball_2.txt is neither UTF-8 nor Windows-1252 text (byte 0x81 at 6); save it as UTF-8" in start(job_data(folder))


def test_a_missing_model_file(start, pictures, tmp_path):
    fields = ("transformer", "vae", "clip_l", "t5", "clip_tokenizer", "t5_tokenizer")
    base = {f"{field}_path": str(tmp_path / f"{field}.safetensors") for field in fields} | {"model_flavour": "dev"}
    message = start(job_data(pictures, base=base))
    assert all(f"base.{field}_path: there is no file {tmp_path / field}.safetensors" in message for field in fields)


def test_an_unknown_field(start, pictures):
    assert "job.lora: unknown field 'rank'" in start(job_data(pictures, lora={"rank": 8}))


def test_a_target_that_matches_no_module(start, pictures):
    message = start(job_data(pictures, lora={"flux_lora_target": "tiny"}))
    assert "lora.flux_lora_target 'tiny' matches no layer" in message and "choose another target" in message


def test_routes_that_the_base_cannot_take(start, pictures):
    routes = [{"start_layer_idx": 1, "end_layer_idx": 9}, {"start_layer_idx": 4, "end_layer_idx": 2}]
    message = start(job_data(pictures, routes=routes))
    assert "routes.0" in message and "routes.1" in message


def test_a_picture_that_breaks_off_is_named_and_left_out(tmp_path, cache):
    folder = make_pictures(tmp_path / "pictures")
    Image.effect_noise((400, 400), 90).convert("RGB").save(folder / "noise.jpg")
    (folder / "noise.jpg").write_bytes((folder / "noise.jpg").read_bytes()[:-2000])
    (folder / "noise.txt").write_text("noise")
    (tmp_path / "job.json").write_text(json.dumps(job_data(folder)))
    command = Command("run", tmp_path / "job.json", "--out", tmp_path / "runs", "--cache", cache)
    assert command.code == 0
    assert f"left out of the training, 1 file: {folder / 'noise.jpg'}: is cut off: its end is missing" in command.stderr


def test_a_warning_reaches_the_events(tmp_path, cache):
    folder = make_pictures(tmp_path / "pictures", 1)
    (folder / "ball_0.txt").write_bytes("a ball for 5 €".encode("cp1252"))
    (tmp_path / "job.json").write_text(json.dumps(job_data(folder, training={"max_train_steps": 1})))
    command = Command("run", tmp_path / "job.json", "--out", tmp_path / "runs", "--cache", cache)
    assert command.code == 0 and "was read as Windows-1252" in command.stderr
    lines = (Path(command.report["run_dir"]) / "events.jsonl").read_text(encoding="utf-8").splitlines()
    messages = [event["message"] for event in map(json.loads, lines) if event["event"] == "warning"]
    assert len(messages) == 1 and "ball_0.txt is not UTF-8" in messages[0]


def test_check_reports_without_training(tmp_path, pictures):
    (tmp_path / "job.json").write_text(json.dumps(job_data(pictures)))
    command = Command("check", tmp_path / "job.json", "--out", tmp_path / "runs")
    assert command.code == 0 and not list((tmp_path / "runs").glob("test-*"))
    report = command.report
    assert report["pictures"] == 6 and report["buckets"] == {"64x64": 2, "80x48": 2, "48x80": 2}
    assert report["epochs"] == 2.0 and report["adapted_layers"] == 28 and not report["finished"]


def test_the_demos_job_is_a_job(tmp_path):
    command = Command("demo", "--print-job", "--out", tmp_path / "runs")
    assert command.code == 0
    assert prepare(parse_job(command.report["job"])).num_steps > 0


def test_inspect_and_resume_refuse_what_they_cannot_use(tmp_path):
    assert "there is no file" in Command("inspect", tmp_path / "none.safetensors").report["error"]
    assert "is not a run folder" in Command("resume", tmp_path).report["error"]
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    assert "not a whole safetensors file" in Command("inspect", tmp_path / "a.safetensors").report["error"]
