"""The trainer that waits for a run, without ComfyUI: what it does when it is told, and that it is gone in every other case."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from node_files import node_file

from support import job_data
from trainer_core.standby import READY, TAKEN

standby = node_file("standby")
PATIENCE_SECONDS = 120
WORDS = ["runs", "--json"]
LEAST_CONTEXT = 64 << 20  # bytes; what CUDA takes for a process before it holds anything is more


def waiting() -> list[psutil.Process]:
    """The trainers of this process that wait, or have waited."""
    living = (process for process in psutil.Process().children() if process.status() != psutil.STATUS_ZOMBIE)
    return [process for process in living if standby.MODULE in process.cmdline()]


def wait_until(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_so()


@pytest.fixture
def place() -> Iterator[Any]:
    """An empty place for one that waits, and nobody there afterwards."""
    own = standby.Standby()
    yield own
    with open(os.devnull, "ab") as log:
        own.take([], log, {}, lambda: None)  # none fits, so it is ended
    assert not waiting()


def take(place: Any, folder: Path, words: list[str], on_tick: Callable[[], None] = lambda: None) -> Any:
    with (folder / "child.log").open("ab") as log:
        return place.take(words, log, standby.child_environment(os.environ), on_tick)


def test_it_is_the_process_of_the_run_and_stops_with_its_input(place, pictures, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps(job_data(pictures, training={"max_train_steps": 100_000})), encoding="utf-8")
    assert place.prepare() == standby.LOADING
    [process] = waiting()
    child = take(
        place, tmp_path, ["run", str(tmp_path / "job.json"), "--out", str(tmp_path / "runs"), "--json", "--watch-stdin"]
    )
    assert child.pid == process.pid
    with (tmp_path / "child.log").open(encoding="utf-8") as log:
        wait_until(lambda: any((tmp_path / "runs").glob("*/events.jsonl")) and '"step"' in events(tmp_path))
        child.stdin.close()
        assert child.wait(PATIENCE_SECONDS) == 3
        said = log.read()
    report = json.loads(said.splitlines()[-1])
    assert report["exit_code"] == 3 and report["stopped_at"] > 0
    assert READY not in said and TAKEN not in said
    assert f'"pid": {process.pid}' in events(tmp_path) and '"stopped"' in events(tmp_path)


def events(folder: Path) -> str:
    return next((folder / "runs").glob("*/events.jsonl")).read_text(encoding="utf-8")


def test_one_waits_and_one_that_is_dead_or_has_other_variables_is_replaced(place, tmp_path, monkeypatch):
    assert place.prepare() == place.prepare() == standby.LOADING
    [first] = waiting()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "not its business")
    place.prepare()
    [second] = waiting()
    assert second.pid != first.pid
    second.kill()
    wait_until(lambda: not waiting())
    place.prepare()
    [third] = waiting()
    assert third.environ()["OMP_NUM_THREADS"] == "3" and "HF_TOKEN" not in third.environ()
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert take(place, tmp_path, WORDS) is None and not waiting()
    assert take(place, tmp_path, WORDS) is None


def test_one_that_dies_of_what_it_is_told_is_not_taken(place, tmp_path):
    place.prepare()
    [process] = waiting()
    assert take(place, tmp_path, WORDS, process.kill) is None
    assert not (tmp_path / "child.log").read_bytes()


def test_who_gives_up_while_it_loads_leaves_none(place, tmp_path):
    place.prepare()
    with pytest.raises(ZeroDivisionError):
        take(place, tmp_path, WORDS, lambda: 1 // 0)
    assert not waiting()


def test_it_does_not_wait_for_ever_and_not_where_memory_is_short(place, monkeypatch):
    monkeypatch.setattr(standby, "MOST_SECONDS", 0.5)
    place.prepare()
    assert waiting()
    wait_until(lambda: not waiting())
    monkeypatch.setattr(standby, "LEAST_MEMORY", 1 << 60)
    assert place.prepare() == standby.NONE and not waiting()


def test_what_one_said_that_died_by_itself_is_told(place, tmp_path, monkeypatch, caplog):
    (tmp_path / "torch.py").write_text("print('about to fail')\nraise OSError('no such library')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    place.prepare()
    wait_until(lambda: "the trainer that waited has died (exit code 1)" in caplog.text)
    assert "about to fail" in caplog.text and "OSError: no such library" in caplog.text


@pytest.mark.gpu
def test_one_that_waits_holds_nothing_on_a_card(place):
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA card; docs/security.md says that it was not measured")
    free, _ = torch.cuda.mem_get_info()
    place.prepare()
    wait_until(lambda: place.prepare() == standby.IS_READY)
    assert free - torch.cuda.mem_get_info()[0] < LEAST_CONTEXT
