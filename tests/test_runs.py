"""Runs are told from their files alone: every state, files that are damaged, and many runs in little time."""

import json
import os
import time

import pytest
from node_files import node_file

from trainer_core.cli import main
from trainer_core.event_file import newest_events, read_page, within
from trainer_core.run_dir import RunDir
from trainer_core.runs import find_run, list_runs, summarise

JOB = {
    "name": "cat",
    "base": {"model_flavour": "dev"},
    "training": {"max_train_steps": 500},
    "validation": {"eval_steps_interval": 0},
    "metadata": {},
}
STARTED = {"event": "started", "version": 1, "run_id": "cat-1", "pid": 1, "resumed_from": 0, "steps": 400}


def steps(first, last):
    return [{"event": "step", "step": step, "steps": 400, "loss": 0.5} for step in range(first, last + 1)]


def make_run(root, *events, job=JOB, log="", result=False):
    """A run folder with these events a second apart, beginning at 1000."""
    root.mkdir(parents=True)
    (root / "job.json").write_text(json.dumps(job))
    lines = [json.dumps({"time": 1000 + second, **event}) for second, event in enumerate(events)]
    (root / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if log:
        (root / "child.log").write_text(log)
    if result:
        (root / "result.json").write_text("{}")
    return RunDir(root)


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ([], "interrupted"),
        ([{"event": "stopped", "step": 3}], "stopped"),
        ([{"event": "stopped", "step": 3}, {"event": "warning", "message": "late"}], "stopped"),
        ([{"event": "stopped", "step": 3}, {"event": "dataset"}], "interrupted"),  # went on, and died while encoding
        ([{"event": "error", "message": "no pictures"}], "failed"),
        ([{"event": "error", "message": "no pictures"}, {"event": "dataset"}, STARTED], "interrupted"),
        ([{"event": "paused", "step": 3}], "interrupted"),
    ],
)
def test_the_state_of_a_run_that_no_process_trains_is_its_last_word(tmp_path, end, state):
    run = make_run(tmp_path / "cat-1", STARTED, *steps(1, 3), *end)
    summary = summarise(run)
    assert (summary.state, summary.step, summary.steps) == (state, 3 if STARTED not in end else 0, 400)
    assert (summary.message is not None) == (state in ("failed", "interrupted"))


def test_a_run_with_a_result_is_finished(tmp_path):
    run = make_run(tmp_path / "cat-1", STARTED, *steps(1, 400), {"event": "done", "step": 400}, result=True)
    assert summarise(run).state == "finished" and summarise(run).message is None


def test_a_run_that_is_held_is_running_and_paused_until_it_continues(tmp_path):
    course = [STARTED, *steps(1, 3), {"event": "paused", "step": 3}, {"event": "checkpoint", "step": 3}]
    run = make_run(tmp_path / "cat-1", *course)
    with run.owned():
        assert summarise(run).state == "paused"
        make_run(tmp_path / "new" / "cat-1", *course, {"event": "continued", "step": 3})
        os.replace(tmp_path / "new" / "cat-1" / "events.jsonl", run.events_path)
        assert summarise(run).state == "running"
    assert summarise(run).state == "interrupted"


def test_a_run_whose_process_is_on_its_way_is_running(tmp_path):
    make_run(tmp_path / "cat-1")
    assert [summary.state for summary in list_runs(tmp_path, busy={"cat-1"})] == ["running"]
    assert [summary.state for summary in list_runs(tmp_path)] == ["interrupted"]


def test_looking_whether_a_run_is_held_keeps_nobody_from_taking_it(tmp_path):
    run = make_run(tmp_path / "cat-1")
    with run.owned():
        pass
    before = os.listdir(run.root)
    assert not run.is_running() and os.listdir(run.root) == before
    (run.root / "lock").unlink()
    assert not run.is_running() and not (run.root / "lock").exists()


def test_a_summary_has_the_newest_of_everything(tmp_path):
    job = JOB | {"validation": {"eval_steps_interval": 100}, "metadata": {"workflow": "{}"}}
    run = make_run(
        tmp_path / "cat-1",
        STARTED,
        {"event": "evaluation", "step": 0, "loss": 0.9},
        {"event": "metrics", "step": 1, "loss": 0.7},
        {"event": "evaluation", "step": 100, "loss": 0.8},
        *steps(1, 2000),  # more than a block of the file
        {"event": "metrics", "step": 2000, "loss": 0.25},
        {"event": "stopped", "step": 2000},
        job=job,
    )
    for step in ("step-000000", "step-000100"):
        (run.root / "samples" / step).mkdir(parents=True)
        (run.root / "samples" / step / "00.png").write_bytes(b"")
    for name in ("step-00002000", "step-00001500", "step-00002000.tmp"):
        (run.root / "checkpoints" / name).mkdir(parents=True)
    (run.root / "cat.safetensors").write_bytes(b"")
    (summary,) = list_runs(tmp_path)
    assert summary._asdict() | {"changed": 0} == {
        "id": "cat-1",
        "name": "cat",
        "state": "stopped",
        "step": 2000,
        "steps": 400,
        "loss": 0.25,
        "held_out": 0.8,
        "base": "dev",
        "started": 1000,
        "changed": 0,
        "thumbnail": "samples/step-000100/00.png",
        "lora": "cat.safetensors",
        "message": None,
        "has_workflow": True,
        "checkpoints": (1500, 2000),
    }
    assert abs(summary.changed - time.time()) < 60


def test_a_run_that_has_only_begun_has_the_steps_of_its_job(tmp_path):
    summary = summarise(make_run(tmp_path / "cat-1"))
    assert (summary.step, summary.steps, summary.loss, summary.thumbnail, summary.lora) == (0, 500, None, None, None)


def test_an_error_from_before_the_events_is_read_from_the_log(tmp_path):
    log = "look at files: 10%\rlook at files: 100%\n" + json.dumps({"error": "no pictures in x", "exit_code": 2}) + "\n"
    summary = summarise(make_run(tmp_path / "cat-1", {"event": "stopped", "step": 3}, log=log))
    assert (summary.state, summary.message) == ("failed", "no pictures in x")


def test_a_log_that_is_older_than_the_events_is_of_another_process(tmp_path):
    run = make_run(tmp_path / "cat-1", STARTED, *steps(1, 3), {"event": "stopped", "step": 3}, log='{"error": "old"}\n')
    os.utime(run.log_path, (1000, 1000))
    assert summarise(run).state == "stopped"


def test_a_traceback_is_shown_without_the_progress_bars(tmp_path):
    log = "train: 1%\rtrain: 2%\rtrain: 3%\nTraceback (most recent call last):\n  File x\nKeyError: 'a'\n"
    summary = summarise(make_run(tmp_path / "cat-1", STARTED, log=log))
    assert summary.state == "failed"
    assert summary.message.splitlines()[-4:] == ["train: 3%", "Traceback (most recent call last):", "  File x", "KeyError: 'a'"]


def test_what_a_traceback_means_is_said_before_it(tmp_path):
    log = "Traceback (most recent call last):\n  File x\nOSError: [Errno 28] No space left on device\n"
    message = summarise(make_run(tmp_path / "cat-1", STARTED, log=log)).message
    assert message.startswith("the disk is full. What helps: make room") and message.endswith("left on device")


def test_who_dies_without_a_word_is_said_to_go_on(tmp_path):
    summary = summarise(make_run(tmp_path / "cat-1", STARTED, *steps(1, 3), log="train: 3%\n"))
    assert summary.state == "interrupted"
    assert "queue the graph again to go on" in summary.message and summary.message.endswith("\ntrain: 3%")


def test_a_killed_child_leaves_its_exit_code_for_the_diagnosis(tmp_path):
    run = make_run(tmp_path / "cat-1", STARTED, *steps(1, 3), log="train: 1%\rtrain: 3%")
    with pytest.raises(RuntimeError, match="exit code -9"):
        node_file("child")._outcome(-9, run)
    summary = summarise(run)
    assert summary.state == "interrupted" and summary.message.startswith("the system or somebody killed the process")
    assert summary.message.endswith("\ntrain: 3%\nthe process ended with exit code -9")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"name": "cat"}',
        "[" * 100_000,
        json.dumps(JOB | {"name": "../cat"}),
        json.dumps(JOB | {"base": 1}),
    ],
    ids=["empty", "cut", "list", "null", "half", "deep", "path", "number"],
)
def test_a_damaged_job_is_listed_as_failed_among_the_others(tmp_path, text):
    make_run(tmp_path / "cat-1", STARTED, {"event": "stopped", "step": 3})
    damaged = make_run(tmp_path / "dog-1", STARTED)
    damaged.job_path.write_text(text)
    listed = {summary.id: summary for summary in list_runs(tmp_path)}
    assert (listed["cat-1"].state, listed["dog-1"].state) == ("stopped", "failed")
    assert "job.json is damaged" in listed["dog-1"].message and listed["dog-1"].name == "dog-1"


def test_events_that_are_damaged_are_passed_over(tmp_path):
    run = make_run(tmp_path / "cat-1", STARTED, *steps(1, 3), {"event": "stopped", "step": 3})
    rubbish = (
        b'\xff\x00{"event": "step"\n[1]\n{"time": 1, "event": "step", "step": "x", "steps": null}\n{"time": 5, "event": "st'
    )
    run.events_path.write_bytes(run.events_path.read_bytes() + rubbish)
    assert summarise(run).step == 0  # the last whole line is a step, though of no number
    run.events_path.write_bytes(b"\x00" * 100_000)
    assert summarise(run).state == "interrupted"


def test_what_is_no_run_folder_is_not_listed(tmp_path):
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    (tmp_path / "runs" / "file").write_text("")
    make_run(tmp_path / "runs" / ".hidden")
    make_run(tmp_path / "elsewhere", STARTED)
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert list_runs(tmp_path / "runs") == [] and list_runs(tmp_path / "none") == []
    for name in ("link", "empty", "..", ".", "", "../elsewhere", "a/../../elsewhere", str(tmp_path / "elsewhere"), "a\0"):
        assert find_run(tmp_path / "runs", name) is None, name
    assert find_run(tmp_path, "elsewhere").root == tmp_path / "elsewhere"


def test_the_run_that_changed_last_stands_first_and_a_change_is_seen(tmp_path):
    first, second = make_run(tmp_path / "cat-1"), make_run(tmp_path / "cat-2")
    os.utime(first.job_path, (2000, 2000))
    os.utime(first.events_path, (2000, 2000))
    assert [summary.id for summary in list_runs(tmp_path)] == ["cat-2", "cat-1"]
    first.events_path.write_text(json.dumps({"time": 1, **steps(7, 7)[0]}) + "\n")
    os.utime(second.job_path, (2000, 2000))
    os.utime(second.events_path, (2000, 2000))
    assert [(summary.id, summary.step) for summary in list_runs(tmp_path)] == [("cat-1", 7), ("cat-2", 0)]


def test_the_command_lists_them_as_a_table_and_as_json(tmp_path, capsys):
    make_run(tmp_path / "cat-1", STARTED, *steps(1, 3), {"event": "metrics", "loss": 0.25}, {"event": "stopped", "step": 3})
    make_run(tmp_path / "dog-1", {"event": "error", "message": "no pictures"})
    os.utime(tmp_path / "dog-1" / "job.json", (3000, 3000))
    os.utime(tmp_path / "dog-1" / "events.jsonl", (3000, 3000))
    assert main(["runs", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "state", "steps", "loss", "held", "out", "base", "changed"]
    assert lines[1].split()[:5] == ["cat-1", "stopped", "3/400", "0.2500", "dev"]
    assert lines[2].split()[:4] == ["dog-1", "failed", "0/500", "dev"]
    assert lines[3:] == ["", "dog-1: no pictures"]
    assert main(["runs", "--out", str(tmp_path), "--json"]) == 0
    assert [run["id"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["cat-1", "dog-1"]


def test_pages_of_events_are_whole_lines_and_meet_without_a_gap(tmp_path):
    run = make_run(tmp_path / "cat-1", STARTED, *steps(1, 50))
    half = run.events_path.read_bytes() + b'{"time": 9, "event": "st'
    run.events_path.write_bytes(half)
    seen, after = [], 0
    while (page := read_page(run.events_path, after, most=500)).events:
        seen, after = seen + page.events, page.next
    assert [event["step"] for event in seen[1:]] == list(range(1, 51)) and after == half.rfind(b"\n") + 1
    run.events_path.write_bytes(half + b'ep", "step": 51}\n')
    assert [event["step"] for event in read_page(run.events_path, after).events] == [51]
    again = read_page(run.events_path, 10**9)
    assert again.restarted and again.events[0]["event"] == "started" and not page.restarted


def test_numbers_that_json_lacks_become_null(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"time": 1, "event": "step", "loss": NaN, "a": -Infinity, "b": 1e999, "c": 1.5}\n')
    (event,) = read_page(tmp_path / "events.jsonl", 0).events
    assert event == {"time": 1, "event": "step", "loss": None, "a": None, "b": None, "c": 1.5}


def test_a_line_without_an_end_does_not_stop_the_reading(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * 1500)
    assert read_page(path, 0, most=1000) == ([], 1000, False)
    assert read_page(path, 1000, most=1000) == ([], 1000, False)


def test_paths_of_events_are_told_inside_the_run_folder(tmp_path):
    event = {"event": "sample", "path": "C:\\out\\runs\\cat-1\\samples\\a.png", "compared": "/elsewhere/a.png"}
    assert within(event, "cat-1") == {"event": "sample", "path": "samples/a.png", "compared": None}
    assert within({"event": "sample", "compared": None}, "cat-1") == {"event": "sample", "compared": None}


def test_of_a_long_file_only_the_end_is_read(tmp_path):
    path = tmp_path / "events.jsonl"
    lines = [json.dumps({"time": 1, **step}) for step in steps(1, 20_000)]
    path.write_text("\n".join(lines) + "\n")
    began = time.perf_counter()
    for _ in range(200):
        assert newest_events(path, {"step": {"step"}})["step"]["step"] == 20_000
    assert time.perf_counter() - began < 1  # 200 files of 1.4 MB; 0.05 s when this was written
