"""The job says everything, once, and tells a user what to mend."""

import pytest

from support import job_data
from trainer_core.errors import JobError
from trainer_core.job import TrainJob
from trainer_core.job_file import dump_job, load_job, parse_job
from trainer_core.specs.validation import parse_sizes


def test_a_job_survives_the_way_through_json(tmp_path, pictures):
    job = parse_job(job_data(pictures, lora={"lora_rank": 7, "lora_alpha": 3.5}))
    path = tmp_path / "job.json"
    path.write_text(dump_job(job), encoding="utf-8")
    assert load_job(path) == job


def test_an_unknown_field_is_refused_with_the_name_that_was_meant(pictures):
    with pytest.raises(JobError, match=r"job\.lora: unknown field 'lora_rnak', did you mean 'lora_rank'\?"):
        parse_job(job_data(pictures, lora={"lora_rnak": 8}))


def test_all_problems_are_reported_at_once(pictures):
    data = job_data(pictures, lora={"lora_rank": 0}, training={"max_train_steps": "many"}, nonsense=1)
    data["datasets"] = [{"caption_strategy": "textfile"}]
    with pytest.raises(JobError) as caught:
        parse_job(data)
    message = str(caught.value)
    assert "job.lora.lora_rank" in message and "(got 0)" in message
    assert "job.training.max_train_steps" in message
    assert "job.datasets.0.instance_data_dir: is missing" in message
    assert "job: unknown field 'nonsense'" in message


def test_pico_takes_no_files_and_the_others_need_them(pictures):
    with pytest.raises(JobError, match="remove vae_path"):
        parse_job(job_data(pictures, base={"vae_path": "ae.safetensors"}))
    with pytest.raises(JobError, match="'dev' needs transformer_path, vae_path"):
        parse_job(job_data(pictures, base={"model_flavour": "dev"}))


def test_a_name_cannot_leave_the_run_folder(pictures):
    for name in ("../evil", "a/b", "", ".hidden", "a\\b"):
        with pytest.raises(JobError, match=r"job\.name"):
            parse_job(job_data(pictures) | {"name": name})


def test_a_job_that_is_not_json_or_not_there_is_named(tmp_path):
    with pytest.raises(JobError, match="there is no job file"):
        load_job(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(JobError, match=r"bad\.json is not JSON"):
        load_job(tmp_path / "bad.json")


def test_every_field_explains_itself():
    def specs(model):
        yield model
        for field in model.model_fields.values():
            for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if hasattr(part, "model_fields"):
                    yield from specs(part)

    for spec in specs(TrainJob):
        for name, field in spec.model_fields.items():
            is_part = hasattr(field.annotation, "model_fields") or name in ("datasets", "routes")
            assert is_part or field.description, f"{spec.__name__}.{name} has no description"


def test_sizes_are_width_times_height_or_one_edge():
    assert parse_sizes("1024x768, 512") == [(1024, 768), (512, 512)] and parse_sizes("") == []
    for wrong in ("1024x", "0x16", "ax16", "1x2x3", "9000"):
        with pytest.raises(ValueError, match="validation_resolution"):
            parse_sizes(wrong)
