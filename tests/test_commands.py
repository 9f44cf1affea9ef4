"""What a run can be told while it trains: commands as files, in their order, and prompts that somebody typed in."""

import time

import pytest

from support import Command
from trainer_core.commands import COMMANDS, LONGEST_PROMPT, make_command
from trainer_core.control import LOOK_SECONDS, Control
from trainer_core.errors import JobError
from trainer_core.run_dir import RunDir
from trainer_core.writing import write_json


def test_commands_in_a_row_are_all_taken_in_their_order(tmp_path):
    run_dir, asked = RunDir(tmp_path), [("save", ""), ("sample", "a red ball"), ("sample", "一只猫 🐈"), ("pause", "")]
    for name, prompt in asked:
        run_dir.ask(name, prompt)
    control = Control(run_dir)
    assert not control() and [tuple(control.next()) for _ in asked] == asked and control.next() is None
    time.sleep(LOOK_SECONDS)
    run_dir.ask("sample")
    run_dir.ask("stop")
    assert control() and control.next() == make_command("sample") and not list(tmp_path.iterdir())


def test_commands_stay_in_their_order_when_the_clock_is_set_back(tmp_path):
    run_dir = RunDir(tmp_path)
    run_dir.ask("pause")
    [waiting] = tmp_path.iterdir()
    waiting.rename(tmp_path / f"control-{time.time_ns() + 3600 * 10**9:020d}-abcdef.json")  # an hour from now
    run_dir.ask("save")
    run_dir.ask("continue")
    assert [command.name for command in run_dir.take_commands()] == ["pause", "save", "continue"]


def test_a_control_file_by_other_hands_is_read_and_one_that_is_none_is_passed_over(tmp_path, caplog):
    write_json(tmp_path / "control.json", {"command": "save"})
    assert RunDir(tmp_path).take_commands() == [make_command("save")]
    for number, odd in enumerate(({"command": "fly"}, ["stop"], {"command": "sample", "prompt": 3}, {"command": ["stop"]})):
        write_json(tmp_path / f"control-{number}.json", odd)
    (tmp_path / "control-9.json").write_bytes(b"\xff{")
    assert RunDir(tmp_path).take_commands() == [] and not list(tmp_path.iterdir())
    assert caplog.text.count("held no command") == 5 and f"known are {', '.join(COMMANDS)}" in caplog.text


def test_a_typed_prompt_is_brought_onto_one_line_or_refused_with_the_reason(tmp_path):
    assert make_command("sample", "  a red\n\tball ").prompt == "a red ball"
    for prompt, reason in (
        (" \n", "is empty; type one in"),
        ("x" * (LONGEST_PROMPT + 1), f"has {LONGEST_PROMPT + 1} characters"),
        ("a\x1b[2Jball", r"the control character U\+001B"),
        ("half a \ud83d face", r"U\+D83D"),
    ):
        with pytest.raises(JobError, match=reason):
            RunDir(tmp_path).ask("sample", prompt)
    with pytest.raises(JobError, match="takes no prompt"):
        RunDir(tmp_path).ask("save", "a ball")
    assert not list(tmp_path.iterdir())


def test_the_command_line_refuses_the_same(tmp_path):
    assert "is empty" in Command("ask", tmp_path, "sample", "--prompt", " ").report["error"]
    assert "no process trains in" in Command("ask", tmp_path, "sample", "--prompt", "a ball").report["error"]
