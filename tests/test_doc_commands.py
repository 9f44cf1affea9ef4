"""Every command of the pages that is not flux-lora's is run, too: in a small size, as tests/doc_commands.py has it.

A command that a page has and the table has not fails here. What takes a moment is run in the default suite, the rest where
FLUX_LORA_SLOW=1 is set; of those the default suite looks whether the program is there and knows the options.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doc_commands import NOT_RUN, SHORT, UV
from doc_pages import VARIABLES, all_commands, text_of

from support import ROOT

COMMANDS = [command for command in all_commands() if not command.startswith("flux-lora ")]
QUICK = [command for command, short in SHORT.items() if short.is_quick]
LONG = list({short.run: command for command, short in SHORT.items() if not short.is_quick}.values())  # each size once
LONGEST = 3600  # seconds
STARTED = {
    "python": [sys.executable],
    "pytest": [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
    "uv": [UV or "uv"],
    "accelerate": [sys.executable, "-m", "accelerate.commands.accelerate_cli"],
}


def in_any_size(command: str) -> str:
    """The command with its numbers left open: a page may take others tomorrow."""
    return re.sub(r"(?<= )\d+\b", "N", command)


def test_each_command_of_the_pages_is_in_the_table_and_the_table_has_no_others() -> None:
    told, known = {in_any_size(command) for command in COMMANDS}, {in_any_size(command) for command in (*SHORT, *NOT_RUN)}
    assert not told - known, "say in tests/doc_commands.py how it is run in a small size, or why it is not"
    assert not known - told, "no page has these any more"


@pytest.mark.parametrize("command", SHORT)
def test_a_module_that_is_started_exists_and_has_its_options(command: str) -> None:
    for part in (command, *SHORT[command].run.split(" && ")):
        started = re.match(r"python -m ((?:benchmarks|tools|tests)\.\S+)(.*)", part)
        if started is None:
            continue
        place = ROOT / started[1].replace(".", "/")
        source = text_of(place / "__main__.py" if place.is_dir() else place.with_suffix(".py"))
        assert "__main__" in source or place.is_dir()
        assert not [option for option in re.findall(r"--[\w-]+", started[2]) if f'"{option}"' not in source]


def test_a_command_is_run_as_itself() -> None:
    """The same program, whatever else the small size is."""
    for command, short in SHORT.items():
        first, *more = VARIABLES.sub("", command).split()
        program = more[1] if first == "python" else first  # after -m
        assert f"{program} " in f"{short.run} ", command


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all that git knows here."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, encoding="utf-8")
    if listed.returncode:
        pytest.skip("not a git checkout")
    copy = tmp_path_factory.mktemp("copy") / "flux-lora-studio"
    for name in listed.stdout.split("\0")[:-1]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    return copy


def run_short(command: str, copy: Path, out: Path) -> None:
    short = SHORT[command]
    if short.lacks():
        pytest.skip(short.lacks())
    root = copy if short.remakes else ROOT
    made = Path(short.makes.format(out=out, root=root))
    short.prepare(out)
    if short.makes:
        made.unlink(missing_ok=True)
    said = "".join(run_part(part.format(out=out, root=root), root, short.codes) for part in short.run.split(" && "))
    assert re.search(short.says, said), said[-3000:]
    assert not short.makes or [path for path in made.parent.glob(made.name) if path.stat().st_size > 0]


def run_part(part: str, folder: Path, codes: tuple[int, ...]) -> str:
    """What it prints."""
    words = shlex.split(VARIABLES.sub("", part))
    given = dict(word.split("=", 1) for word in shlex.split(VARIABLES.match(part)[0] if VARIABLES.match(part) else ""))
    started = [*STARTED.get(words[0], words[:1]), *words[1:]]
    inherited = {name: value for name, value in os.environ.items() if name not in ("FLUX_LORA_SLOW", "VIRTUAL_ENV")}
    done = subprocess.run(started, cwd=folder, env=inherited | given, capture_output=True, text=True, timeout=LONGEST)
    assert done.returncode in codes, f"{part}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@pytest.mark.parametrize("command", QUICK)
def test_a_command_does_its_work(command: str, repository: Path, tmp_path: Path) -> None:
    run_short(command, repository, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", LONG)
def test_a_long_command_does_its_work(command: str, repository: Path, tmp_path: Path) -> None:
    run_short(command, repository, tmp_path)
