"""Spoilt files for so long, and the findings: python -m tests.fuzz TARGET [--minutes N] [--seed N].

`all` is every target. Minutes are the processor's, so that a busy machine does not shorten them. Each target's line comes when
it ends; one that is broken off (SIGTERM, Ctrl-C) says so, and what it did until then. Where something is found, the exit code
is 1 and the files that show it are kept.
"""

import argparse
import faulthandler
import logging
import secrets
import signal
import sys
import tempfile
from pathlib import Path

from .campaign import Outcome, campaign
from .targets import NAMES, target_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=["all", *NAMES])
    parser.add_argument("--minutes", type=float, default=3.0, help="of the processor, for each target (default: 3)")
    parser.add_argument(
        "--seed", type=int, help="repeats what was drawn; the numbers of files differ with the time that there is"
    )
    args = parser.parse_args()
    logging.disable()
    faulthandler.enable()  # a library that falls over says where
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the campaign tells what it did
    seed, kept, has_found = args.seed if args.seed is not None else secrets.randbits(32), None, False
    for name in NAMES if args.target == "all" else [args.target]:
        outcome = campaign(target_of(name), args.minutes * 60, seed)
        print(told(name, outcome, seed), flush=True)
        for number, finding in enumerate(outcome.findings):
            has_found, kept = True, kept or Path(tempfile.mkdtemp(prefix="fuzz-"))
            (kept / f"{name}-{number}").write_bytes(finding.data)
            print(f"  {finding.what} at {finding.where}; the file is {kept / f'{name}-{number}'}", flush=True)
        if not outcome.is_whole:
            break
    return int(has_found)


def told(name: str, outcome: Outcome, seed: int) -> str:
    end = "" if outcome.is_whole else ", broken off"
    took, kinds = f"{outcome.seconds / 60:.1f} min of the processor", len(outcome.findings)
    return f"{name}: {outcome.files} files in {took} (seed {seed}), {outcome.refused} refused, {kinds} findings{end}"


if __name__ == "__main__":
    sys.exit(main())
