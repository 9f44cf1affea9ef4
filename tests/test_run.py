"""Whole runs, as a user starts them: files, events, stop, resume, and what a second start does."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from support import ROOT, Command, job_data, make_pictures, poison_latents, run_in_process
from trainer_core.checkpoint import restore_latest
from trainer_core.errors import JobError, StopRequested
from trainer_core.events import FIELDS, EventReader
from trainer_core.job_file import parse_job
from trainer_core.run_dir import RunDir, run_dir_for
from trainer_core.setup import prepare


def events_of(run_dir: Path) -> list[dict]:
    return list(EventReader(RunDir(run_dir).events_path).new())


def test_a_run_leaves_what_it_promises(tmp_path, pictures, cache):
    data = job_data(
        pictures,
        validation={
            "num_validation_images": 2,
            "validation_num_inference_steps": 2,
            "validation_step_interval": 3,
        },
        training={"checkpoint_step_interval": 2, "checkpoints_total_limit": 2},
        metadata={"workflow": '{"nodes": []}'},
    )
    (tmp_path / "job.json").write_text(json.dumps(data))
    command = Command("run", tmp_path / "job.json", "--out", tmp_path / "runs", "--cache", cache, in_child=True)
    assert command.code == 0, command.stderr
    report = command.report
    run_dir = Path(report["run_dir"])

    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    assert sorted(p.relative_to(run_dir).as_posix() for p in run_dir.glob("samples/*/*.png")) == [
        f"samples/step-{step:06d}/{index:02d}.png" for step in (0, 3, 6) for index in (0, 1)
    ]
    for name in ("before_after.png", "loss_curve.png"):
        with Image.open(run_dir / name) as image:
            image.verify()
    assert parse_job(json.loads((run_dir / "job.json").read_text())) == parse_job(data)
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["pictures"] == 6 and len(manifest["modules"]) * 3 == report["verified_keys"] == 84
    assert not list(run_dir.rglob("*.tmp")) and not list(run_dir.rglob("*.partial"))

    events = events_of(run_dir)
    kinds = [event["event"] for event in events]
    assert all(event.keys() - {"time", "event"} == FIELDS[event["event"]] for event in events)
    assert kinds.count("step") == 6 and kinds.count("sample") == 6 and kinds.count("checkpoint") == 3
    assert kinds[-1] == "done"
    assert [event["loss"] for event in events if event["event"] == "step"] == report["losses"]

    shown = Command("inspect", report["lora"]).report
    assert shown["ranks"] == [4] and shown["modules"] == 28 and shown["dtypes"] == ["bfloat16"]
    assert shown["metadata"]["workflow"] == '{"nodes": []}'
    assert shown["metadata"]["flux_lora.run_id"] == report["run_id"]

    started = time.monotonic()
    again = Command("run", tmp_path / "job.json", "--out", tmp_path / "runs", "--cache", cache)
    assert again.code == 0 and {k: again.report[k] for k in ("lora", "losses")} == {k: report[k] for k in ("lora", "losses")}
    assert events_of(run_dir) == events, "a finished run must not be touched"
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, pictures, cache, precision):
    job = parse_job(
        job_data(
            pictures,
            base={"mixed_precision": precision},
            optimizer={"lr_scheduler": "cosine", "lr_warmup_steps": 2},
            flow={"caption_dropout_probability": 0.3, "flow_schedule_shift": 2.0},
            validation={"num_validation_images": 1, "validation_num_inference_steps": 1},
            training={
                "gradient_accumulation_steps": 2 if precision == "no" else 1,
                "checkpoint_step_interval": 0,
                "max_train_steps": 4,
            },
        )
    )
    straight = run_in_process(job, tmp_path / "straight", cache)
    for step in (1, 3):
        with pytest.raises(StopRequested) as stopped:
            run_in_process(job, tmp_path / "resumed", cache, stop_before=step)
        assert stopped.value.step == step
    resumed = run_in_process(job, tmp_path / "resumed", cache)
    assert resumed["losses"] == straight["losses"]
    assert Path(resumed["lora"]).read_bytes() == Path(straight["lora"]).read_bytes()
    starts = [e["resumed_from"] for e in events_of(Path(resumed["run_dir"])) if e["event"] == "started"]
    assert starts == [0, 1, 3]


def test_training_lowers_the_loss_on_what_it_sees(tmp_path, pictures, cache):
    data = job_data(
        pictures,
        lora={"lora_rank": 16, "flux_lora_target": "all+ffs"},
        optimizer={"learning_rate": 3e-3},
        training={"max_train_steps": 16, "train_batch_size": 2},
    )
    losses = run_in_process(parse_job(data), tmp_path, cache)["losses"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_routed_run_trains_differently_resumes_exactly_and_samples_whole(tmp_path, pictures, cache):
    routes = [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -2}]
    parts = {
        "validation": {"num_validation_images": 1, "validation_num_inference_steps": 1},
        "training": {"max_train_steps": 3},
    }
    plain = run_in_process(parse_job(job_data(pictures, **parts)), tmp_path, cache)
    job = parse_job(job_data(pictures, routes=routes, **parts))
    routed = run_in_process(job, tmp_path / "straight", cache)
    assert routed["losses"] != plain["losses"]
    with pytest.raises(StopRequested):
        run_in_process(job, tmp_path / "resumed", cache, stop_before=2)
    assert Path(run_in_process(job, tmp_path / "resumed", cache)["lora"]).read_bytes() == Path(routed["lora"]).read_bytes()
    base = [RunDir(Path(r["run_dir"])).sample_path(0, "00").read_bytes() for r in (plain, routed)]
    assert base[0] == base[1]
    manifest = json.loads(RunDir(Path(routed["run_dir"])).manifest_path.read_text())
    assert manifest["routes"] == [{"ratio": 0.5, "first": 1, "last": 4, "until_step": None, "keep_masked": True}]


def test_accumulation_equals_the_large_batch(tmp_path, cache):
    """Five samples a step: at once, one by one, and in uneven batches of three and two."""
    folder = make_pictures(tmp_path / "pictures", 1)
    data = job_data(folder, lora={"lora_save_precision": "fp32"})
    data["datasets"][0]["repeats"] = 4
    files = []
    for batch, accumulation in ((5, 1), (1, 5), (3, 2)):
        data["training"] |= {"train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_train_steps": 2}
        result = run_in_process(parse_job(data), tmp_path / f"{batch}", cache)
        norms = [event["grad_norm"] for event in events_of(Path(result["run_dir"])) if event["event"] == "step"]
        files.append((result["losses"] + norms, load_file(result["lora"])))
    (large_numbers, large), *others = files
    for numbers, tensors in others:
        assert numbers == pytest.approx(large_numbers, rel=1e-5)
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, large[name], rtol=0, atol=2e-5)  # AdamW moves by up to 1e-3 a step


def test_checkpointing_changes_memory_not_numbers(tmp_path, pictures, cache):
    settings = ({}, {"gradient_checkpointing": True}, {"gradient_checkpointing": True, "gradient_checkpointing_interval": 3})
    jobs = [parse_job(job_data(pictures, training={"max_train_steps": 3} | changed)) for changed in settings]
    losses = [run_in_process(job, tmp_path, cache)["losses"] for job in jobs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, pictures, cache):
    job = parse_job(job_data(pictures, training={"checkpoint_step_interval": 2, "checkpoints_total_limit": 3}))
    result = run_in_process(job, tmp_path, cache)
    run_dir = RunDir(Path(result["run_dir"]))
    newest = run_dir.checkpoints_dir / "step-00000006" / "adapter.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    saved = load_file(run_dir.checkpoints_dir / "step-00000004" / "adapter.safetensors")
    parameters = {name: torch.nn.Parameter(torch.zeros_like(tensor)) for name, tensor in saved.items()}
    history = restore_latest(run_dir.checkpoints_dir, parameters, torch.optim.AdamW(parameters.values()), None)
    assert history.losses == result["losses"][:4]
    assert [path.name for path in run_dir.checkpoints_dir.glob("*.damaged")] == ["step-00000006.damaged"]
    assert all(torch.equal(parameters[name], saved[name]) for name in saved)


def test_a_loss_that_is_no_number_stops_before_the_update(tmp_path, pictures):
    job = parse_job(job_data(pictures, training={"checkpoint_step_interval": 1, "max_train_steps": 2}))
    run_in_process(job, tmp_path / "clean", tmp_path / "cache")
    poison_latents(prepare(job).samples, tmp_path / "cache")
    with pytest.raises(JobError, match=r"(?s)step 1: the loss \(nan\).*were not touched.*ball_.*at sigma 0\.\d+: loss nan"):
        run_in_process(job, tmp_path / "poisoned", tmp_path / "cache")
    assert not run_dir_for(job, tmp_path / "poisoned").checkpoints_dir.exists()


def test_stop_through_the_control_file_and_resume_from_the_command_line(tmp_path, pictures, cache):
    data = job_data(pictures, training={"max_train_steps": 4000, "checkpoint_step_interval": 0})
    (tmp_path / "job.json").write_text(json.dumps(data))
    run_dir = run_dir_for(parse_job(data), tmp_path / "runs")
    arguments = ["run", tmp_path / "job.json", "--out", tmp_path / "runs", "--cache", cache, "--watch-stdin", "--json"]
    child = subprocess.Popen(
        [sys.executable, "-m", "trainer_core", *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    wait_for_step(run_dir)
    run_dir.ask("stop")
    output, _ = child.communicate(timeout=60)
    report = json.loads(output.strip().splitlines()[-1])
    assert child.returncode == 3 and report["stopped_at"] > 0 and not list(run_dir.root.glob("control*"))

    child = subprocess.Popen(
        [sys.executable, "-m", "trainer_core", "resume", str(run_dir.root), "--cache", str(cache), "--watch-stdin"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_step(run_dir, after=report["stopped_at"])
    child.stdin.close()  # as when the program that started it dies
    assert child.wait(timeout=60) == 3
    starts = [event["resumed_from"] for event in events_of(run_dir.root) if event["event"] == "started"]
    assert starts == [0, report["stopped_at"]]


def test_a_run_folder_has_one_owner_at_a_time(tmp_path, pictures, cache):
    data = job_data(pictures, training={"max_train_steps": 1})
    (tmp_path / "job.json").write_text(json.dumps(data))
    run_dir = run_dir_for(parse_job(data), tmp_path / "runs")
    with run_dir.owned():
        command = Command("run", tmp_path / "job.json", "--out", tmp_path / "runs", "--cache", cache)
    assert command.code == 2 and "is being trained by another process" in command.report["error"]
    assert Command("run", tmp_path / "job.json", "--out", tmp_path / "runs", "--cache", cache).code == 0


def test_a_finished_run_may_be_moved(tmp_path, pictures, cache):
    result = run_in_process(parse_job(job_data(pictures, training={"max_train_steps": 1})), tmp_path / "here", cache)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = RunDir(tmp_path / "there" / result["run_id"]).result()
    assert Path(moved["lora"]).is_file() and Path(moved["loss_curve"]).is_file()
    assert Command("inspect", moved["lora"]).code == 0


def wait_for_step(run_dir: RunDir, after: int = 0) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        steps = [event["step"] for event in EventReader(run_dir.events_path).new() if event["event"] == "step"]
        if steps and steps[-1] > after:
            return
        time.sleep(0.1)
    raise AssertionError("the run did not come to its first step")
