"""How ComfyUI's side starts a process of the trainer, and what that process takes for code."""

import os
import subprocess
import sys

import pytest
from node_files import node_file

from support import ROOT
from trainer_core.data.lookers import BOOT as LOOK

process, environment = node_file("process"), node_file("environment")
HOSTILE = ("json", "numpy", "torch", "pathlib", "runpy", "trainer_core", "sitecustomize")


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A working directory that somebody has filled with modules."""
    for name in HOSTILE:
        (tmp_path / f"{name}.py").write_text("import os\nos._exit(77)\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def test_no_module_is_taken_from_the_working_directory(hostile):
    child = process.start(["runs", "--out", ".", "--json"], subprocess.PIPE, environment.child_environment(os.environ))
    said, _ = child.communicate()
    assert child.returncode == 0 and b'"runs": []' in said


def test_nor_by_the_processes_that_look_at_files(hostile):
    done = subprocess.run([sys.executable, "-c", LOOK, str(ROOT)], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
