"""Names and paths that a workflow may give: what a file is never written under, and what is never read."""

import json
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from support import ROOT, Command, job_data
from trainer_core.errors import JobError
from trainer_core.file_names import expanded, problem_of, problem_of_path
from trainer_core.job_file import parse_job
from trainer_core.specs.prompts import parse_library

NEVER_WRITTEN = (
    *("/etc/passwd", "../up", "..", "a/../../b", "C:/x", "C:x", "//server/share", "\\\\server\\share", "a:b", "a.png:stream"),
    *("CON", "con", "NUL.safetensors", "com1.x", "LPT9", "COM¹", "CONIN$", "aux .txt", "CON.a.b"),
    *("a.", "a ", " a", ".a", "a\n", "a\0b", "a\x7f", "a\u202eb", "x" * 121, "é" * 101, "", "?", "*", "<a>", 'a"b', "a|b"),
)
CODE = [path for folder in ("trainer_core", "nodes") for path in (ROOT / folder).rglob("*.py") if path.name != "file_names.py"]


@pytest.mark.parametrize("name", NEVER_WRITTEN)
def test_nothing_is_written_under_such_a_name(name: str, tmp_path: Path) -> None:
    assert problem_of(name)
    if name != "a.":
        with pytest.raises(JobError, match=r"job\.name"):
            parse_job(job_data(tmp_path, name=name))
    with pytest.raises(ValueError, match="is no file name"):
        parse_library(json.dumps({name: "a ball"}))


@pytest.mark.parametrize("name", ["my-lora", "a.b", "console", "com10", "nullable", "aux_1", "0"])
def test_an_ordinary_name_is_taken(name: str, tmp_path: Path) -> None:
    assert not problem_of(name)
    assert parse_job(job_data(tmp_path, name=name)).name == name and parse_library(f'{{"{name}": "a"}}')[0].name == name


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (PurePosixPath("/in/a\nb"), "control characters"),
        (PurePosixPath("/in/a\0b"), "control characters"),
        (PurePosixPath("/in/" + "x" * 256), "too long"),
        (PurePosixPath("/in/" + "x/" * 3000), "too long"),
        (PureWindowsPath("C:/in/CON"), "a device"),
        (PureWindowsPath("C:/in/nul.png"), "a device"),
        (PureWindowsPath("C:/in/com1 ./a.png"), "a device"),
        (PureWindowsPath("C:/in/a.png:hidden"), "a stream"),
        (PureWindowsPath("C:/in/a::$DATA"), "a stream"),
    ],
)
def test_such_a_path_is_not_read(path: PurePosixPath, said: str) -> None:
    assert said in problem_of_path(path, on_windows=isinstance(path, PureWindowsPath))


@pytest.mark.parametrize("path", ["/in/12:30", "/in/aux", "/in/good names /é.png", "/in/no \udcff text.png", "relative", "/"])
def test_an_odd_path_of_linux_is_read(path: str) -> None:
    assert not problem_of_path(PurePosixPath(path), on_windows=False)
    assert not problem_of_path(PureWindowsPath("C:/in/good/a.png"), on_windows=True)


def test_the_home_of_nobody_is_an_error_in_words(tmp_path: Path) -> None:
    assert expanded(" ~/a ") == Path.home() / "a"
    assert not [path for path in CODE if "expanduser(" in path.read_text(encoding="utf-8")], "file_names.expanded says it"
    (tmp_path / "job.json").write_text(json.dumps(job_data(Path("~nobody-here/pictures"))), encoding="utf-8")
    done = Command("check", tmp_path / "job.json")
    assert done.code == 2 and "the home of nobody" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(JobError, match="the home of nobody"):
        expanded("~nobody-has-this-name/a")
