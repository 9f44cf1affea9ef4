"""The loop around the step: length, averages, reports, commands while it runs, and another job on the way."""

import json
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support import Command, job_data, run_in_process
from trainer_core.ema import Ema
from trainer_core.errors import JobError, StopRequested
from trainer_core.events import EventLog, EventReader
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import load_transformer
from trainer_core.flux.predict import predict_velocity
from trainer_core.flux.recompute import recompute_blocks
from trainer_core.guard import ENCODING, EVALUATING, INDEXING, LOADING, PICTURING, advice, memory_watched
from trainer_core.job_changes import allowed_changes
from trainer_core.job_file import dump_job, parse_job
from trainer_core.launch import launch
from trainer_core.run_dir import RunDir, run_dir_for
from trainer_core.saved import list_checkpoints
from trainer_core.setup import prepare


def events_of(result: dict, kind: str) -> list[dict]:
    return [event for event in EventReader(RunDir(Path(result["run_dir"])).events_path).new() if event["event"] == kind]


def test_epochs_are_counted_over_repeats_buckets_and_accumulation(pictures):
    data = job_data(pictures, training={"max_train_steps": 0, "num_train_epochs": 3, "gradient_accumulation_steps": 2})
    assert prepare(parse_job(data)).num_steps == 5  # 6 pictures in 3 buckets of 2: 3 batches, 9 in all, 2 a step
    data["datasets"][0]["repeats"] = 1
    assert prepare(parse_job(data)).num_steps == 9
    with pytest.raises(JobError, match="both say how long; set one to 0"):
        parse_job(job_data(pictures, training={"num_train_epochs": 1}))


def test_the_average_follows_the_weights_by_its_formula():
    weights = {"a": torch.nn.Parameter(torch.zeros(2))}
    ema, expected = Ema(weights, decay=0.5, interval=2), 0.0
    for step in range(1, 9):
        weights["a"].data.fill_(float(step))
        ema.update(step)
        if step % 2 == 0:
            decay = min(0.5, (1 + step // 2) / (10 + step // 2))
            expected = decay * expected + (1 - decay) * step
    assert ema.tensors["a"].tolist() == pytest.approx([expected] * 2)
    with ema.applied():
        assert weights["a"].tolist() == pytest.approx([expected] * 2)
    assert weights["a"].tolist() == [8.0, 8.0]


def averaged(pictures: Path, out: Path, cache: Path, **training: object) -> dict:
    """The result of a run with an average, pictured at its end."""
    validation = {"num_validation_images": 1, "validation_num_inference_steps": 1}
    training = {"use_ema": True, "ema_validation": "comparison", "checkpoint_step_interval": 0} | training
    return run_in_process(parse_job(job_data(pictures, validation=validation, training=training)), out, cache)


def test_the_average_is_saved_verified_and_pictured(tmp_path, pictures, cache):
    result = averaged(pictures, tmp_path, cache)
    run_dir = RunDir(Path(result["run_dir"]))
    lora, average = load_file(result["lora"]), load_file(result["ema_lora"])
    assert lora.keys() == average.keys() and any(not lora[name].equal(average[name]) for name in lora)
    manifest = json.loads(run_dir.manifest_path.read_text())
    assert manifest["verified"] == {
        "checkpoints/step-00000006/lora/test-ema.safetensors": "84 of 84 keys",
        "checkpoints/step-00000006/lora/test.safetensors": "84 of 84 keys",
        "test-ema.safetensors": "84 of 84 keys",
        "test.safetensors": "84 of 84 keys",
    }
    assert [Path(path).parent.name for path in result["samples"]] == ["step-000006", "step-000006-ema"]
    assert run_dir.sample_path(6, "00").read_bytes() != run_dir.sample_path(6, "00", ema=True).read_bytes()
    for field, other in (("ema_decay", 0.0), ("ema_update_interval", 4)):
        another = averaged(pictures, tmp_path, cache, **{field: other})
        assert load_file(another["lora"]).keys() == lora.keys()
        assert any(not average[name].equal(tensor) for name, tensor in load_file(another["ema_lora"]).items())
        if field == "ema_decay":  # without memory the average is the adapter itself
            assert Path(another["ema_lora"]).read_bytes() == Path(another["lora"]).read_bytes()


def test_every_interval_is_reported_and_the_last_one_may_be_shorter(tmp_path, pictures, cache):
    job = parse_job(job_data(pictures, training={"max_train_steps": 5, "log_interval": 2}))
    result = run_in_process(job, tmp_path, cache)
    reports = events_of(result, "metrics")
    assert [report["step"] for report in reports] == [2, 4, 5]
    assert [report["loss"] for report in reports] == [
        sum(result["losses"][0:2]) / 2,
        sum(result["losses"][2:4]) / 2,
        result["losses"][4],
    ]
    assert all(len(report["loss_by_sigma"]) == 5 and report["memory_gib"]["ram"] > 0 for report in reports)
    assert all(0 <= report["data_wait_share"] <= 1 and report["steps_per_second"] > 0 for report in reports)


def test_a_route_is_reported_with_its_tokens_and_its_time(tmp_path, pictures, cache):
    routes = [
        {"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": 2, "anneal_from": 0.5},
        {"selection_ratio": 0.25, "start_layer_idx": 3, "end_layer_idx": 4},
    ]
    result = run_in_process(parse_job(job_data(pictures, routes=routes)), tmp_path, cache)
    first, second = result["routes"]
    assert first["steps"] == 3 and first["dropped_share"] == pytest.approx(0.5, abs=0.03)
    assert second["steps"] == 6 and second["dropped_share"] == pytest.approx(0.25, abs=0.03)
    assert first["seconds_per_step"] > 0
    [report] = events_of(result, "metrics")
    assert report["dropped_tokens"] == [first["dropped_tokens"], second["dropped_tokens"]]


def test_the_best_checkpoint_is_kept_and_named(tmp_path, pictures, cache):
    """The rate is far too high after a good start, so the best is not the last."""
    data = job_data(
        pictures,
        validation={"eval_steps_interval": 1, "num_eval_images": 2, "eval_timesteps": 2},
        optimizer={"learning_rate": 0.3, "lr_warmup_steps": 5},
        training={"max_train_steps": 6, "checkpoints_total_limit": 1, "checkpoint_step_interval": 0},
    )
    data["datasets"].append({"id": "held-out", "dataset_type": "eval", "instance_data_dir": str(pictures)})
    result = run_in_process(parse_job(data), tmp_path, cache)
    losses = {evaluation["step"]: evaluation["loss"] for evaluation in result["evaluations"]}
    assert list(losses) == [0, 1, 2, 3, 4, 5, 6]
    best = min(range(1, 7), key=losses.__getitem__)
    assert result["best_step"] == best != 6
    kept = [path.name for path in list_checkpoints(RunDir(Path(result["run_dir"])).checkpoints_dir)]
    assert kept == ["step-00000006", f"step-{best:08d}"]
    assert f"step-{best:08d}" in result["best_lora"] and Path(result["best_lora"]).is_file()
    [first] = [event for event in events_of(result, "evaluation") if event["step"] == 0]
    assert first["by_dataset"].keys() == {"held-out"} and len(first["by_dataset"]["held-out"]) == 2


def test_a_running_training_saves_pictures_pauses_and_continues_when_asked(tmp_path, pictures, cache):
    data = job_data(
        pictures,
        validation={"num_validation_images": 1, "validation_num_inference_steps": 1},
        training={"max_train_steps": 4000, "checkpoint_step_interval": 0},
    )
    job = parse_job(data)
    run_dir = run_dir_for(job, tmp_path)

    def ask(wish: str, kind: str) -> dict:
        seen = len(all_events(run_dir))
        assert Command("ask", run_dir.root, wish).code == 0
        return wait_for(run_dir, kind, after=seen)

    def look_on() -> None:
        try:
            wait_for(run_dir, "step")
            assert Path(ask("save", "checkpoint")["path"]).is_dir()
            assert Path(ask("sample", "sample")["path"]).is_file()
            paused = ask("pause", "paused")
            time.sleep(0.5)
            assert all_events(run_dir)[-1]["event"] == "paused"
            assert ask("continue", "continued")["step"] == paused["step"]
            wait_for(run_dir, "step", after=len(all_events(run_dir)))
            ask("pause", "paused")
        finally:
            ask("stop", "stopped")

    with ThreadPoolExecutor(1) as aside:
        looker = aside.submit(look_on)
        with pytest.raises(StopRequested):
            launch(job, run_dir, cache, (), watch_stdin=False)
        looker.result()
    refused = Command("ask", run_dir.root, "save")
    assert refused.code == 2 and "no process trains in" in refused.report["error"]


def all_events(run_dir: RunDir) -> list[dict]:
    return list(EventReader(run_dir.events_path).new())


def wait_for(run_dir: RunDir, kind: str, after: int = 0) -> dict:
    """The first event of this kind behind the first `after` events."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [event for event in all_events(run_dir)[after:] if event["event"] == kind]
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"there was no event {kind}")


def test_a_finished_run_goes_on_with_more_steps_and_another_rate(tmp_path, pictures, cache):
    old = parse_job(job_data(pictures, training={"max_train_steps": 2}))
    first = run_in_process(old, tmp_path / "runs", cache)
    longer = job_data(pictures, training={"max_train_steps": 4}, optimizer={"learning_rate": 5e-4})
    (tmp_path / "longer.json").write_text(json.dumps(longer))
    command = Command("resume", first["run_dir"], "--job", tmp_path / "longer.json", "--cache", cache)
    assert command.code == 0, command.stderr
    assert command.report["losses"][:2] == first["losses"] and len(command.report["losses"]) == 4
    [changed] = events_of(command.report, "job_changed")
    assert changed["changes"] == [
        {"field": "optimizer.learning_rate", "old": 0.001, "new": 0.0005},
        {"field": "training.max_train_steps", "old": 2, "new": 4},
    ]
    assert RunDir(Path(first["run_dir"])).job() == parse_job(longer)
    (tmp_path / "shorter.json").write_text(
        json.dumps(job_data(pictures, training={"max_train_steps": 3}, optimizer={"learning_rate": 5e-4}))
    )
    refused = Command("resume", first["run_dir"], "--job", tmp_path / "shorter.json", "--cache", cache)
    assert refused.code == 2 and "4 steps are trained already, the job has 3" in refused.report["error"]


def test_what_would_make_it_another_run_is_refused_with_every_difference(pictures):
    old = parse_job(job_data(pictures))
    new = job_data(pictures, lora={"lora_rank": 8}, training={"seed": 7, "max_train_steps": 9}, flow={"loss_type": "huber"})
    new["datasets"][0]["repeats"] = 2
    with pytest.raises(JobError) as caught:
        allowed_changes(old, parse_job(new))
    message = str(caught.value)
    for line in (
        "lora.lora_rank: 4 in the run, 8 in the new job",
        "training.seed: 42 in the run, 7 in the new job",
        "flow.loss_type: 'l2' in the run, 'huber' in the new job",
        "datasets.0.repeats: 0 in the run, 2 in the new job",
    ):
        assert line in message
    assert "max_train_steps" not in message


def test_only_every_nth_block_is_recomputed():
    """Counted by the forward passes of each block: twice where it is recomputed."""
    model = load_transformer(PICO_FILES.transformer, torch.float32, torch.device("cpu"))
    recompute_blocks(model, 4)
    model.train().requires_grad_(True)
    calls = {number: 0 for number in range(6)}
    for number, block in enumerate([*model.transformer_blocks, *model.single_transformer_blocks]):
        block.attn.register_forward_hook(lambda *_, number=number: calls.update({number: calls[number] + 1}))
    config = model.config
    text, pooled = torch.randn(1, 4, config.joint_attention_dim), torch.randn(1, config.pooled_projection_dim)
    velocity = predict_velocity(model, torch.randn(1, 16, 8, 8), torch.tensor([0.5]), text, pooled, torch.tensor([1.0]))
    velocity.square().mean().backward()
    assert calls == {0: 2, 1: 1, 2: 1, 3: 1, 4: 2, 5: 1}


def test_out_of_memory_names_the_step_and_three_settings_of_this_job(tmp_path, pictures, cache):
    """A real one: the process may use 40 MB more than it has when the training begins."""
    job = parse_job(job_data(pictures, training={"train_batch_size": 2, "gradient_accumulation_steps": 3}))
    expected = [
        "gradient_checkpointing: true",
        "train_batch_size: 1 with gradient_accumulation_steps: 6",
        "mixed_precision: bf16",
    ]
    assert all(text in line for text, line in zip(expected, advice(job)[:3], strict=True))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + (40 << 20), hard))
    try:
        with (
            pytest.raises(JobError, match=r"step 3: out of memory \(it needed \d+ bytes more\)") as caught,
            memory_watched(job, "step 3"),
        ):
            torch.empty(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert all(f"{number}. " in str(caught.value) for number in (1, 2, 3)) and "4. " not in str(caught.value)
    tuned = parse_job(job_data(pictures, training={"gradient_checkpointing": True, "train_batch_size": 1}))
    assert not any("gradient_checkpointing" in line or "train_batch_size" in line for line in advice(tuned))


@pytest.mark.parametrize(
    ("doing", "first", "never"),
    [
        (INDEXING, "smaller pictures", "gradient_checkpointing"),
        (ENCODING, "base.offload_during_startup", "gradient_checkpointing"),
        (LOADING, "base.mixed_precision: bf16", "train_batch_size"),
        (PICTURING, "base.mixed_precision: bf16", "train_batch_size"),
        (EVALUATING, "training.train_batch_size: 1", "gradient_checkpointing"),
    ],
)
def test_a_stage_is_advised_of_what_helps_there(pictures, doing, first, never):
    lines = advice(parse_job(job_data(pictures, training={"train_batch_size": 2})), doing)
    assert lines[0].startswith(first) and not any(never in line for line in lines)
    assert lines[-1] == "close other programs that use the memory"


def test_another_error_is_not_taken_for_a_lack_of_memory(pictures):
    with pytest.raises(RuntimeError, match="shapes"), memory_watched(parse_job(job_data(pictures)), "step 1"):
        raise RuntimeError("shapes cannot be multiplied")


def test_a_half_written_line_of_a_killed_run_is_cut_off(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "stopped", "step": 1}\n{"event": "st')
    log = EventLog(path)
    log.emit("stopped", step=2)
    log.close()
    assert [event["step"] for event in EventReader(path).new()] == [1, 2]


def test_the_new_job_is_what_the_folder_holds(tmp_path, pictures):
    job = parse_job(job_data(pictures))
    assert allowed_changes(job, parse_job(json.loads(dump_job(job)))) == []
