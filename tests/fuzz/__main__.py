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
from typing import TYPE_CHECKING

from .targets import NAMES, target_of

if TYPE_CHECKING:
    from .campaign import Outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=["all", *NAMES])
    parser.add_argument("--minutes", type=float, default=3.0, help="of the processor, for each target (default: 3)")
    parser.add_argument(
        "--seed", type=int, help="repeats what was drawn; the numbers of files differ with the time that there is"
    )
    parser.add_argument("--guided", action="store_true", help="by coverage, with the package atheris; one target")
    args = parser.parse_args()
    if args.guided and args.target == "all":
        parser.error("--guided takes one target at a time")
    logging.disable()
    faulthandler.enable()  # a library that falls over says where
    seed, has_found = args.seed if args.seed is not None else secrets.randbits(31), False
    if args.guided:
        from .guided import guided

        guided(args.target, args.minutes * 60, seed, lambda outcome: tell(args.target, outcome, seed))
    from .campaign import campaign

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the campaign tells what it did
    for name in NAMES if args.target == "all" else [args.target]:
        outcome = campaign(target_of(name), args.minutes * 60, seed)
        has_found |= bool(tell(name, outcome, seed))
        if not outcome.is_whole:
            break
    return int(has_found)


def tell(name: str, outcome: "Outcome", seed: int) -> int:
    """Print what came of it, and keep the files of the findings; 1 where there are any."""
    took, kinds = f"{outcome.seconds / 60:.1f} min of the processor", len(outcome.findings)
    end = "" if outcome.is_whole else ", broken off"
    print(
        f"{name}: {outcome.files} files in {took} (seed {seed}), {outcome.refused} refused, {kinds} findings{end}", flush=True
    )
    kept = Path(tempfile.mkdtemp(prefix="fuzz-")) if kinds else None
    for number, finding in enumerate(outcome.findings):
        (kept / f"{name}-{number}").write_bytes(finding.data)
        print(f"  {finding.what} at {finding.where}; the file is {kept / f'{name}-{number}'}", flush=True)
    return int(kinds > 0)


if __name__ == "__main__":
    sys.exit(main())
