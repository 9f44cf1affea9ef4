"""The processes that look at very many files: what they tell, and that nothing hangs on them."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from support import ROOT, make_pictures
from trainer_core.data import lookers
from trainer_core.data.find import find_files
from trainer_core.data.lookers import BOOT, SMALL, Lookers, look


@pytest.fixture
def files(tmp_path, monkeypatch) -> list[tuple[str, int]]:
    """Pictures, and what is none, in a folder that is taken for a large one."""
    monkeypatch.setattr(lookers, "MANY", 2)
    folder = make_pictures(tmp_path / "pictures", 4)
    (folder / "text.png").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "ball_0.png").read_bytes()[:-40])
    (folder / "Мяч 'emoji' 🙂.png").write_bytes((folder / "ball_1.png").read_bytes())
    if sys.platform == "linux":
        (folder / os.fsdecode(b"no text \xff.png")).write_bytes(b"")
    return [(file.file, file.stamp[0]) for file in find_files(folder, {".png"}).files]


def helpers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if BOOT in words_of(child)]


def words_of(child: psutil.Process) -> list[str]:
    """How it was started, which the system does not tell in the first moment; nothing of one that has ended."""
    with suppress(psutil.NoSuchProcess):
        while not (words := child.cmdline()):
            time.sleep(0.01)
        return words
    return []


def test_processes_tell_what_a_look_here_tells_and_are_gone_afterwards(files):
    here = [look(path) for path, _ in files]
    with Lookers([size for _, size in files], 2) as them:
        assert len(helpers()) == 2
        assert them.look_at_each(files) == them.look_at_each(files) == here
    assert not helpers()
    assert {type(what) for what, _ in here} == {lookers.Facts, str}


def test_one_that_dies_is_done_without_and_none_knows_a_token(files, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Lookers([size for _, size in files], 1) as them:
        [helper] = helpers()
        assert "hf_secret" not in helper.environ().values()
        helper.kill()
        helper.wait()
        assert them.look_at_each(files) == [look(path) for path, _ in files]


def test_few_files_and_large_ones_are_looked_at_here(files):
    with Lookers([SMALL + 1] * len(files), 2) as them:
        assert not helpers()
        assert them.look_at_each(files) == [look(path) for path, _ in files]


def test_who_is_left_looks_at_nothing_more(files):
    with Lookers([size for _, size in files], 2) as them:
        them.leave()
        assert them.look_at_each(files) == []


def test_a_process_ends_when_its_input_does(files):
    done = subprocess.run(
        [sys.executable, "-c", BOOT, str(ROOT)],
        input=json.dumps([files[0][0]]) + "\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout)[0][1] is True and done.stderr == ""
