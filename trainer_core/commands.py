"""What a running training can be told from outside, and how a prompt that somebody typed in is taken.

A command lies in the run folder as a small JSON file until the run takes it: {"command": "sample", "prompt": "a red ball"}.
Anyone who may write there may send one, so it is checked where it is asked for and again where it is read.
"""

import unicodedata
from typing import Any, NamedTuple

from .errors import JobError

STOP, PAUSE, CONTINUE, SAVE, SAMPLE = COMMANDS = ("stop", "pause", "continue", "save", "sample")
LONGEST_PROMPT = 2000  # characters; the encoders read about as much


class Command(NamedTuple):
    """One of COMMANDS; `prompt` says what to picture instead of the job's own prompts, and goes with sample alone."""

    name: str
    prompt: str = ""

    def to_json(self) -> dict[str, str]:
        return {"command": self.name} | ({"prompt": self.prompt} if self.prompt else {})


def make_command(name: str, prompt: str = "") -> Command:
    """The command, its prompt on one line and without blanks around it; JobError says what is wrong with it."""
    if name not in COMMANDS:
        raise JobError(f"{name!r} is no command; known are {', '.join(COMMANDS)}")
    if prompt and name != SAMPLE:
        raise JobError(f"the command {name!r} takes no prompt; only {SAMPLE!r} does")
    return Command(name, _one_line(prompt) if prompt else "")


def read_command(data: Any) -> Command:
    """The command that a file holds; JobError where it is none."""
    name, prompt = (data.get("command"), data.get("prompt", "")) if isinstance(data, dict) else (None, "")
    if not isinstance(name, str) or not isinstance(prompt, str):
        raise JobError(f"{str(data)[:80]!r} is no command; write it as {Command(SAMPLE, 'a red ball').to_json()}")
    return make_command(name, prompt)


def _one_line(prompt: str) -> str:
    text = " ".join(prompt.split())
    if not text:
        raise JobError("the prompt to picture is empty; type one in, or leave it out to picture the job's own prompts")
    if len(text) > LONGEST_PROMPT:
        raise JobError(f"the prompt to picture has {len(text)} characters; {LONGEST_PROMPT} is the most, shorten it")
    if odd := [character for character in text if unicodedata.category(character) in ("Cc", "Cs")]:
        raise JobError(f"the prompt to picture has the control character U+{ord(odd[0]):04X} in it; take it out")
    return text
