"""How a process of the trainer is started: by a list of words, with what of the environment it may have, and no shell.

It is given a pipe as its standard input. The pipe ends when this side closes it or ComfyUI dies, however it dies, and that is
how the process knows that nobody waits for it any more.

Its working directory is ComfyUI's own, and Python looks for no module there: what a request may have put into a folder is
never code. Paths mean the same to it as to the node that has checked them.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

PACK_ROOT = Path(__file__).parents[1]
TRAINER = "trainer_core"  # the program `flux-lora`

# Windows' embedded Python ignores PYTHONPATH, so the child is told where the core lies; "" is the working directory.
BOOT = (
    "import sys; sys.path[:] = [sys.argv.pop(1), *filter(None, sys.path)]; import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def start(
    words: list[str], output: IO[bytes] | int, environment: Mapping[str, str], *, module: str = TRAINER
) -> "subprocess.Popen[bytes]":
    """The program `python -m MODULE WORDS`; both its outputs go to `output`, which may be subprocess.PIPE."""
    return subprocess.Popen(
        [sys.executable, "-c", BOOT, str(PACK_ROOT), module, *words],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # exists on Windows only, where a console would pop up
    )
