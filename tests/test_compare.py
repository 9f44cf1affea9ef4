"""After training: which LoRA is meant, and checkpoints side by side."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from support import Command, job_data, run_in_process
from trainer_core.compare import compare
from trainer_core.errors import JobError, StopRequested
from trainer_core.job_file import parse_job
from trainer_core.run_dir import RunDir, run_dir_for
from trainer_core.saved import find_lora, held_out_losses, list_steps
from trainer_core.writing import read_sealed, write_sealed


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict:
    from support import make_pictures

    folder = make_pictures(tmp_path_factory.mktemp("data") / "pictures", 6)
    return job_data(
        folder,
        lora={"lora_save_precision": "fp32"},
        optimizer={"learning_rate": 1e-2},
        validation={
            "user_prompt_library": json.dumps({"ball": "a ball", "tall": {"prompt": "a tall ball", "seed": 5}}),
            "validation_num_inference_steps": 1,
            "num_validation_images": 4,
            "num_held_out": 2,
            "eval_steps_interval": 2,
            "eval_timesteps": 2,
        },
        training={"checkpoint_step_interval": 2, "checkpoints_total_limit": 9, "use_ema": True},
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(data, cache, tmp_path_factory) -> RunDir:
    return RunDir(Path(run_in_process(parse_job(data), tmp_path_factory.mktemp("runs"), cache)["run_dir"]))


def test_a_lora_is_found_by_what_its_user_calls_it(finished):
    result = finished.result()
    assert find_lora(finished, "final").path == find_lora(finished, "latest").path == Path(result["lora"])
    assert find_lora(finished, "").step == result["steps"] == 6
    assert find_lora(finished, "EMA") == (Path(result["ema_lora"]), 6, True)
    assert find_lora(finished, "best").step == result["best_step"]
    four = find_lora(finished, "4")
    assert four.path.is_relative_to(finished.checkpoints_dir / "step-00000004") and find_lora(finished, "4-ema").is_ema
    assert list_steps(finished) == [2, 4, 6] and held_out_losses(finished).keys() == {0, 2, 4, 6}
    for unknown in ("5", "first", "4-x"):
        with pytest.raises(JobError, match=r"there is: final, best, ema, 2, 4, 6"):
            find_lora(finished, unknown)


def test_a_run_that_was_stopped_has_its_latest_checkpoint(data, cache, tmp_path):
    job = parse_job(data)
    with pytest.raises(StopRequested):
        run_in_process(job, tmp_path, cache, stop_before=3)
    stopped = run_dir_for(job, tmp_path)
    assert find_lora(stopped, "latest").step == list_steps(stopped)[-1] == 3
    assert held_out_losses(stopped).keys() == {0, 2} and find_lora(stopped, "best").step == 2
    with pytest.raises(JobError, match=r"has no LoRA 'final'; there is: best, 2, 3"):
        find_lora(stopped, "final")


def test_checkpoints_stand_side_by_side_as_the_run_pictured_them(finished, cache, tmp_path):
    report = compare(finished, ["2", "final", "ema"], [1.0], tmp_path / "grid.png", cache)
    losses = held_out_losses(finished)
    *rows, average = [(row["label"], row["held_out_loss"]) for row in report["rows"]]
    assert rows == [("base", losses[0]), ("step 2, strength 1", losses[2]), ("step 6, strength 1", losses[6])]
    assert average[0] == "step 6 (average), strength 1"
    assert average[1] is not None and average[1] not in losses.values()
    grid = Image.open(report["grid"]).convert("RGB")
    for row, step in ((0, 0), (2, 6)):
        for column, name in enumerate(("ball", "tall")):
            left, top = 190 + column * (128 + 6), 56 + row * (128 + 6)
            shown = grid.crop((left, top, left + 128, top + 128)).resize((64, 64), Image.Resampling.NEAREST)
            made = Image.open(finished.sample_path(step, name)).convert("RGB")
            largest = max(abs(a - b) for a, b in zip(shown.tobytes(), made.tobytes(), strict=True))
            assert largest <= 1, f"{name} at step {step}: off by {largest}"


def test_strength_scales_and_zero_is_the_base(finished, cache, tmp_path):
    report = compare(finished, ["final"], [0.0, 0.5, 1.0], tmp_path / "grid.png", cache)
    assert [row["label"] for row in report["rows"]] == ["base", "step 6, strength 0.5", "step 6, strength 1"]
    losses = [row["held_out_loss"] for row in report["rows"]]
    assert None not in losses and len(set(losses)) == 3
    grid = Image.open(report["grid"]).convert("RGB")
    base, half, full = (grid.crop((190, 56 + row * 134, 318, 184 + row * 134)).tobytes() for row in range(3))
    distance = lambda one, other: sum(abs(a - b) for a, b in zip(one, other, strict=True))  # noqa: E731
    assert 0 < distance(base, half) < distance(base, full)


def test_the_loss_of_a_checkpoint_is_the_same_in_another_process_and_with_other_threads(finished, cache):
    """To the last digit there, and to 1e-5 where torch adds up in another order. And it is what the run measured."""
    words = ("evaluate", finished.root, "--checkpoints", "4, ema", "--cache", cache)
    threads = torch.get_num_threads()
    here, there = Command(*words), Command(*words, in_child=True, environment={"OMP_NUM_THREADS": str(threads)})
    assert here.code == there.code == 0, there.stderr
    assert here.report == there.report
    rows = {row["label"]: row for row in here.report["rows"]}
    assert rows.keys() == {"base", "step 4, strength 1", "step 6 (average), strength 1"}
    torch.set_num_threads(3 - min(threads, 2))
    try:
        others = {row["label"]: row for row in Command(*words).report["rows"]}
    finally:
        torch.set_num_threads(threads)
    for label, row in rows.items():
        assert others[label]["loss"] == pytest.approx(row["loss"], rel=1e-5)
        assert row["by_dataset"].keys() == {"pictures held out"} and len(row["by_dataset"]["pictures held out"]) == 2
    for label, step in (("base", 0), ("step 4, strength 1", 4)):
        assert rows[label]["loss"] == pytest.approx(held_out_losses(finished)[step], rel=1e-6)


def test_nothing_is_measured_where_the_pictures_are_gone_and_that_is_said(finished, cache, data, tmp_path, caplog):
    moved = tmp_path / "moved"
    shutil.copytree(finished.root, moved)
    pictures = Path(data["datasets"][0]["instance_data_dir"])
    pictures.rename(tmp_path / "elsewhere")
    report = compare(RunDir(moved), ["2"], [0.5], tmp_path / "grid.png", cache)
    assert [row["held_out_loss"] for row in report["rows"]] == [held_out_losses(finished)[0], None]
    assert "what the run has not measured itself stays unknown" in caplog.text
    manifest = read_sealed(moved / "manifest.json")
    write_sealed(moved / "manifest.json", manifest | {"shots": []})
    with pytest.raises(JobError, match="has no prompts"):
        compare(RunDir(moved), ["2"], [0.5], tmp_path / "grid.png", cache)
    wrong = Command("evaluate", moved, "--cache", cache)
    (tmp_path / "elsewhere").rename(pictures)
    assert wrong.code == 2 and "has no pictures to measure its loss on" in wrong.report["error"]


def test_the_command_compares_and_says_what_is_wrong(finished, cache, tmp_path):
    grid = tmp_path / "grid.png"
    done = Command("compare", finished.root, "--checkpoints", "2, best", "--grid", grid, "--cache", cache)
    assert done.code == 0 and grid.exists()
    lines = done.report["text"].splitlines()
    assert len(lines) == 3 and lines[0].startswith("base") and lines[-1].endswith("(best)")
    for words, said in (
        ((finished.root, "--checkpoints", "7"), "has no LoRA '7'; there is: final, best, ema, 2, 4, 6"),
        ((finished.root, "--strengths", "much"), "'much' are no numbers"),
        ((tmp_path,), "is not a run folder"),
    ):
        wrong = Command("compare", *words)
        assert wrong.code == 2 and said in wrong.report["error"]
