"""The child process of ComfyUI's side, without ComfyUI: what is left when it dies or is cancelled, and what is said."""

import importlib
import os
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

import psutil
import pytest

from support import ROOT, job_data
from trainer_core.run_dir import RunDir

PACKAGE = "pack_without_comfyui"


class Cancelled(Exception):
    """What ComfyUI raises."""


def trainers() -> list[psutil.Process]:
    """The trainers that this process has started; other tests may have started other processes in it."""
    living = (process for process in psutil.Process().children() if process.status() != psutil.STATUS_ZOMBIE)
    return [process for process in living if "trainer_core" in process.cmdline()]


@pytest.fixture(scope="module")
def pack() -> Any:
    """The module nodes/child.py with the core as it sees it; only the package around them is made up."""
    for name, path in ((PACKAGE, ROOT), (f"{PACKAGE}.nodes", ROOT / "nodes")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(path)]
    return importlib.import_module(f"{PACKAGE}.nodes.child"), importlib.import_module(f"{PACKAGE}.trainer_core.job_file")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is not Windows'")
@pytest.mark.parametrize("moment", ["while it loads", pytest.param("once it tells", marks=pytest.mark.slow)])
def test_a_child_that_is_killed_leaves_nothing_behind_and_the_reason_in_plain_words(
    pack, pictures, tmp_path, monkeypatch, moment
):
    child, job_file = pack
    order: list[str] = []
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "SOMETHING_ELSE"):
        monkeypatch.setenv(name, "not the child's business")
    environment: dict[str, str] = {}

    def kill() -> None:
        for process in trainers():
            environment.update(process.environ())
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(RuntimeError) as died:
        child.train(
            job_file.parse_job(job_data(pictures)),
            tmp_path,
            free_memory=lambda: order.append(f"memory freed beside {len(trainers())} children"),
            on_event=lambda event: (order.append(event["event"]), kill()),
            on_tick=kill if moment == "while it loads" else lambda: None,
        )
    assert "(exit code -9): the system or somebody killed the process, most often because" in str(died.value)
    assert "What helps: close other programs" in str(died.value) and "child.log" in str(died.value)
    assert environment["PATH"] and "not the child's business" not in environment.values()
    assert order[0] == "memory freed beside 0 children" and (len(order) > 1) == (moment == "once it tells")
    assert not trainers() and not list(tmp_path.rglob("*.tmp"))


def test_cancel_is_heeded_while_the_child_still_loads_its_libraries(pack, pictures, tmp_path):
    child, job_file = pack
    ticks: list[float] = []

    def cancel() -> None:
        ticks.append(time.monotonic())
        if len(ticks) == 2:
            raise Cancelled

    job = job_file.parse_job(job_data(pictures))
    with pytest.raises(Cancelled):
        child.train(job, tmp_path, free_memory=lambda: None, on_event=lambda event: None, on_tick=cancel)
    assert time.monotonic() - ticks[-1] < 2 and not trainers()
    [root] = (tmp_path / "runs").iterdir()
    assert not RunDir(Path(root)).is_running() and not RunDir(Path(root)).take_commands()
