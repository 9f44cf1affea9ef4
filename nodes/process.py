"""How a process of the trainer is started: by a list of words, with what of the environment it may have, and no shell.

It is given a pipe as its standard input. The pipe ends when this side closes it or ComfyUI dies, however it dies, and that is
how the process knows that nobody waits for it any more.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

PACK_ROOT = Path(__file__).parents[1]
TRAINER = "trainer_core"  # the program `flux-lora`

# Windows' embedded Python ignores PYTHONPATH and the working directory, so the child is told where the core lies.
BOOT = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def start(
    words: list[str], folder: Path, output: IO[bytes] | int, environment: Mapping[str, str], *, module: str = TRAINER
) -> "subprocess.Popen[bytes]":
    """The program `python -m MODULE WORDS` in that folder; both its outputs go to `output`, which may be subprocess.PIPE."""
    return subprocess.Popen(
        [sys.executable, "-c", BOOT, str(PACK_ROOT), module, *words],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # exists on Windows only, where a console would pop up
    )
