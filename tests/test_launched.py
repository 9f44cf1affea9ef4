"""What accelerate's own launcher tells of a DeepSpeed configuration, and what we read from it."""

import json

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env

from trainer_core.errors import JobError
from trainer_core.launched import said_of_zero, zero_stage

PLACE = ["--num_machines", "1", "--num_processes", "2", "--mixed_precision", "no"]


@pytest.fixture
def launched(monkeypatch):
    """Give this process the environment that `accelerate launch` with these words would, as the first of two."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)

    def launched(*words):
        args = launch_command_parser().parse_args([*PLACE, "--use_deepspeed", *map(str, words), "script.py"])
        args.deepspeed_fields_from_accelerate_config = ""  # of its own configuration file
        _, told = prepare_deepspeed_cmd_env(args)
        for name, value in told.items():
            monkeypatch.setenv(name, value)

    return launched


def test_without_deepspeed_there_is_no_stage_and_nothing_to_say():
    assert zero_stage() is None
    assert said_of_zero() == ""


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_stage_is_that_of_the_launcher_s_words(launched, stage):
    launched("--zero_stage", stage)
    assert zero_stage() == stage
    done = "FSDP2 shares out the frozen base" if stage == 3 else "each process keeps the adapter"
    assert f"ZeRO {stage}: {done}" in said_of_zero()


def test_of_one_process_nothing_is_said_that_is_not_done(launched, monkeypatch):
    launched("--zero_stage", 3)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert said_of_zero() == ""


@pytest.mark.parametrize(("config", "stage"), [({"zero_optimization": {"stage": 3}}, 3), ({"fp16": {"enabled": True}}, 0)])
def test_the_stage_is_that_of_deepspeed_s_own_file(launched, tmp_path, config, stage):
    (tmp_path / "zero.json").write_text(json.dumps(config), encoding="utf-8")
    launched("--deepspeed_config_file", tmp_path / "zero.json")
    assert zero_stage() == stage


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "that cannot be read: .*No such file"),
        ("{", "that cannot be read"),
        ("[]", "that cannot be read"),
        ('{"zero_optimization": {"stage": "auto"}}', "is 'auto'; set it to 0, 1, 2 or 3"),
    ],
)
def test_a_file_that_does_not_tell_is_named(launched, tmp_path, text, said):
    if text is not None:
        (tmp_path / "zero.json").write_text(text, encoding="utf-8")
    launched("--deepspeed_config_file", tmp_path / "zero.json")
    with pytest.raises(JobError, match=f"zero.json.*{said}"):
        zero_stage()
