"""A trainer that waits: its libraries are loaded before anybody knows the job, and one line tells it what to do.

To load torch, diffusers, transformers and peft takes about ten seconds, and nothing of it depends on the job. The line is a
JSON object on standard input: the words of a command, and the log to write. From then on this process is what
`python -m trainer_core WORDS` would be, and its standard input means what it means to that command; nothing behind the line is
read here. If standard input ends without a line it leaves, and says nothing.

What it says on standard output, to who has started it: READY once it listens, TAKEN once the line is understood. Whoever has
not read TAKEN may be sure that nothing was begun. Nothing is put on a card before the command does so.
"""

import json
import os
import signal

READY, TAKEN = "the trainer is ready", "the trainer has begun"
STDIN, STDOUT, STDERR = 0, 1, 2


def main() -> int:
    """Load, wait, and do what is said; the exit code."""
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for who has started it
    from .cli import main as command
    from .uncollected import uncollected

    with uncollected():  # the libraries take a second less, of twelve
        from . import launch  # noqa: F401  whose imports take the time

    print(f"\n{READY}", flush=True)  # on a line of its own, whatever was printed before
    line = _line()
    if not line:
        return 0
    told = json.loads(line)
    with open(told["log"], "ab") as log:
        print(TAKEN, flush=True)
        os.dup2(log.fileno(), STDOUT)
        os.dup2(log.fileno(), STDERR)
    signal.signal(signal.SIGINT, on_interrupt)
    return command(told["words"])


def _line() -> bytes:
    """The line on standard input, or nothing where that ends before. Read byte by byte: what is behind it is not ours."""
    line = b""
    while byte := os.read(STDIN, 1):
        line += byte
        if byte == b"\n":
            return line
    return b""


if __name__ == "__main__":
    raise SystemExit(main())
