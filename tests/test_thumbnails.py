"""The pictures in the headers of a run's LoRA files: each shows the newest that was due before it was saved, resumed or not."""

import shutil
from pathlib import Path

from support import job_data, run_in_process
from trainer_core.adapter.header import metadata_of
from trainer_core.job_file import parse_job
from trainer_core.modelspec import thumbnail_of
from trainer_core.run_dir import RunDir

AFTER_THE_KILL = ("checkpoints/step-00000003", "samples/step-000002", "samples/step-000003")


def lora_of(step: int) -> str:
    return f"checkpoints/step-{step:08d}/lora/test.safetensors"


def test_a_checkpoint_shows_the_pictures_before_it_also_after_a_kill_between_the_two(tmp_path, pictures, cache):
    shown = {"validation_prompts": ["a ball"], "validation_resolution": "32x32", "validation_num_inference_steps": 1}
    validation = shown | {"num_validation_images": 4, "validation_step_interval": 2}
    training = {"max_train_steps": 3, "train_batch_size": 1, "checkpoint_step_interval": 1, "checkpoints_total_limit": 9}
    job = parse_job(job_data(pictures, validation=validation, training=training))
    straight = Path(run_in_process(job, tmp_path / "straight", cache)["run_dir"])
    headers = {step: metadata_of((straight / lora_of(step)).read_bytes()) for step in (1, 2, 3)}
    pictured = thumbnail_of(straight / "samples" / "step-000002" / "00.png")
    assert [headers[step].get("modelspec.thumbnail") for step in headers] == [None, None, pictured]

    killed = RunDir(tmp_path / "killed" / straight.name)
    shutil.copytree(straight, killed.root)
    killed.result_path.unlink()
    for place in AFTER_THE_KILL:
        shutil.rmtree(killed.root / place)
    run_in_process(job, tmp_path / "killed", cache)
    for file in ("samples/step-000002/00.png", lora_of(3), "test.safetensors"):
        assert (killed.root / file).read_bytes() == (straight / file).read_bytes(), file
