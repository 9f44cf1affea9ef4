"""Spoilt files for so long, and the findings: python -m tests.fuzz TARGET [--minutes N] [--seed N].

`all` is every target. Where something is found, the exit code is 1 and the files that show it are kept.
"""

import argparse
import logging
import secrets
import sys
import tempfile
import time
from pathlib import Path

from .campaign import campaign
from .targets import NAMES, target_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=["all", *NAMES])
    parser.add_argument("--minutes", type=float, default=3.0, help="of each target")
    parser.add_argument(
        "--seed", type=int, help="repeats what was drawn; the numbers of files differ with the time that there is"
    )
    args = parser.parse_args()
    logging.disable()
    seed, kept, has_found = args.seed if args.seed is not None else secrets.randbits(32), None, False
    for name in NAMES if args.target == "all" else [args.target]:
        begun = time.monotonic()
        outcome = campaign(target_of(name), args.minutes * 60, seed)
        took, kinds = time.monotonic() - begun, len(outcome.findings)
        print(
            f"{name}: {outcome.files} files in {took:.0f} s (seed {seed}), {outcome.refused} refused, {kinds} findings",
            flush=True,
        )
        for number, finding in enumerate(outcome.findings):
            has_found, kept = True, kept or Path(tempfile.mkdtemp(prefix="fuzz-"))
            (kept / f"{name}-{number}").write_bytes(finding.data)
            print(f"  {finding.what} at {finding.where}; the file is {kept / f'{name}-{number}'}", flush=True)
    return int(has_found)


if __name__ == "__main__":
    sys.exit(main())
