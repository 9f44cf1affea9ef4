"""A process that dies is diagnosed by what it leaves: real processes that are killed, crash, or run out of something."""

import subprocess
import sys
from pathlib import Path

import pytest

from trainer_core.diagnosis import diagnose, last_lines

DEATHS = {
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": "most often because the computer's memory (RAM) ran out",
    "import ctypes; ctypes.string_at(0)": "a library crashed in its compiled code",
    "import os; os.abort()": "a library crashed in its compiled code",
    "import os, signal; os.kill(os.getpid(), signal.SIGTERM)": "asked to end from outside",
    "import a_package_that_is_not_there.part": "the Python package a_package_that_is_not_there is missing",
    "from os import nothing_of_the_kind": "do not fit together",
    "import resource as r; r.setrlimit(r.RLIMIT_AS, (1 << 28, 1 << 28)); bytearray(1 << 29)": "memory (RAM) ran out",
    "open('/dev/full', 'w', buffering=1).write('much\\n')": "the disk is full",
}


@pytest.mark.skipif(sys.platform != "linux", reason="the ways to die are Linux's")
@pytest.mark.parametrize("program", DEATHS)
def test_a_death_is_told_in_plain_words_with_what_helps(program, tmp_path):
    log = tmp_path / "child.log"
    with log.open("wb") as file:
        code = subprocess.run([sys.executable, "-c", program], stdout=file, stderr=subprocess.STDOUT).returncode
    told = diagnose(code, last_lines(log))
    assert DEATHS[program] in told and "What helps: " in told


def test_what_torch_and_windows_say_is_known():
    out = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.99 GiB"
    assert diagnose(1, ["Traceback", out, ""]).startswith("the card's memory ran out. What helps: choose a lower resolution")
    assert "page" not in diagnose(1, ["OSError: The paging file is too small for this operation to complete. (os error 1455)"])
    assert diagnose(3221225477, []) == diagnose(-1073741819, []) == diagnose(-11, []) == diagnose(139, []) != ""


def test_the_newest_line_that_fits_counts_and_an_unknown_end_is_not_guessed_at():
    assert diagnose(-9, ["ImportError: a warning that was printed long before"]).startswith("the system or somebody killed")
    lines = ["ModuleNotFoundError: No module named 'xformers'", "step 12", "OSError: [Errno 28] No space left on device"]
    assert diagnose(1, lines).startswith("the disk is full")
    assert diagnose(1, ["ValueError: what is this"]) == diagnose(None, []) == ""


def test_only_the_end_of_a_long_log_is_read(tmp_path):
    log = tmp_path / "child.log"
    log.write_text("".join(f"line {number}\n" for number in range(100_000)) + "MemoryError\n")
    assert last_lines(log, 2) == ["line 99999", "MemoryError"]
    assert last_lines(Path(tmp_path / "none.log")) == []
