"""`python -m tests.faults`: faults of every kind, done to small real runs; what came of them as one JSON object.

Exit code 0 where every promise was kept, else 1.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Report = dict[str, Any]


def kills(args: argparse.Namespace, folder: Path) -> Report:
    if args.comfy:
        words = ["-m", "tests.faults.comfy_kills", str(folder), str(args.kills), str(args.seed)]
        helpers = {"PYTHONPATH": str(Path(__file__).parents[1] / "comfy")}
        done = subprocess.run([sys.executable, *words], env=os.environ | helpers, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])
    from .harmed import make_straight
    from .kills import kill_many

    return kill_many(make_straight(folder), args.kills, args.seed)


def bits(args: argparse.Namespace, folder: Path) -> Report:
    from .bits import SMALL, damage_all
    from .harmed import make_straight

    first, step = map(int, args.part.split("/"))
    return damage_all(make_straight(folder, **SMALL), args.places, args.seed, (first, step))


def disk(args: argparse.Namespace, folder: Path) -> Report:
    from .disks import can_mount, lose_folders
    from .full import fill_disks
    from .harmed import make_straight

    if not can_mount():
        raise SystemExit("small disks are mounted, which needs root: unshare -rm python -m tests.faults disk")
    straight = make_straight(folder)
    return fill_disks(straight, args.disks, args.seed) | {"said": lose_folders(straight)}


def memory(args: argparse.Namespace, folder: Path) -> Report:
    from .harmed import make_straight
    from .memory import starve_all

    return starve_all(make_straight(folder), args.rounds, args.seed)


def soak(args: argparse.Namespace, folder: Path) -> Report:
    from .soak import soak

    return soak(folder, args.steps)


DEEDS: dict[str, Callable[[argparse.Namespace, Path], Report]] = {
    "kills": kills,
    "bits": bits,
    "disk": disk,
    "memory": memory,
    "soak": soak,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("deed", nargs="?", default="kills", choices=DEEDS, help="default: kills")
    parser.add_argument("--kills", type=int, default=100, help="how many processes are killed (default: 100)")
    parser.add_argument("--comfy", action="store_true", help="kill a real ComfyUI, its trainer, or both")
    parser.add_argument("--places", type=int, default=20, help="of bits: in each file (default: 20)")
    parser.add_argument("--part", default="1/1", help="of bits: 2/4 takes every fourth file from the second on (default: all)")
    parser.add_argument("--disks", type=int, default=24, help="of disk: how many fill up (default: 24)")
    parser.add_argument("--rounds", type=int, default=4, help="of memory: how often each stage is starved (default: 4)")
    parser.add_argument("--steps", type=int, default=20_000, help="of soak (default: 20000)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and places (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the JSON on one line")
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # bits tells what it has done
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        report = DEEDS[args.deed](args, Path(folder))
    print(json.dumps(report, indent=None if args.json else 2, ensure_ascii=False))
    return 0 if report["kept"] else 1


if __name__ == "__main__":
    sys.exit(main())
