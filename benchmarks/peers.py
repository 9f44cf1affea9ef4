"""Our trainer against others' on the same model and pictures: python -m benchmarks.peers [--comfyui FOLDER] [--json]

    --diffusers-script FILE [--diffusers-python PYTHON]   diffusers' train_dreambooth_lora_flux.py, as published
    --simpletuner PYTHON                                  SimpleTuner, by the Python it is installed in
    --comfyui FOLDER [--comfyui-python PYTHON]            ComfyUI's TrainLoraNode

None of their code is here: each is started where it lies, as its users start it, in a process of its own, on equal settings:
one FLUX of full width with random weights (`peer_inputs.py`), the same pictures under one caption, LoRA of the same rank on all
attention, batch 1, 512 tokens of text, AdamW, the same number format, as many threads as cores. (TrainLoraNode's layers cannot
be chosen, see `peer_comfyui.py`; in bf16 the LoRA of the peers is bf16, ours is kept in float32.) With `--recompute` gradient
checkpointing is on for all: the peers then recompute every block, ours as many as memory asks for, and once more every block.

Measured is what every side has in common, from outside (`peer_hook.py`). A step is the time from the end of one optimizer step
to that of the next, so whatever a side does between them counts. Start-up is from the start of the process to the end of its
first step, with nothing in any cache. Memory is the most the process had resident until its last step, files it maps included.

The sides take turns, round by round, because a shared machine is never equally fast twice; a ratio is ours over the peer's of
the same round, and the figures are the medians of the rounds. A side that does not come as far has its reason instead.

On the CPU, Linux only; a processor without bf16 instructions wants `--dtype no`.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from .peer_inputs import Inputs, write_inputs
from .peer_starts import Case, Side, Start, comfyui, diffusers_script, num_threads, ours, ours_all_recomputed, simpletuner
from .random_flux import FULL, SMALL
from .step import machine

HERE = Path(__file__).resolve().parent
OURS, GIB = "ours", 2**30
MIN_STEPS = 3
ERROR = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b")  # as a traceback ends
COLOURS = re.compile(r"\x1b\[[\d;]*m")


class PeerError(Exception):
    """Why a side has no figures."""


class Run(NamedTuple):
    """What was seen of one run of a side: seconds, seconds, bytes."""

    step: float
    first: float
    peak: int
    torch: str
    threads: int


def run_side(side: Side, case: Case, inputs: Inputs, folder: Path) -> Run:
    """Until it has made its steps; PeerError says why not."""
    told, said, hook, work = folder / "steps.jsonl", folder / "said.txt", folder / "hook", folder / "work"
    hook.mkdir()
    work.mkdir()
    shutil.copy(HERE / "peer_hook.py", hook / "sitecustomize.py")
    start = side(case, inputs, folder)
    with said.open("w") as output:
        began = time.monotonic()
        process = psutil.Popen(
            start.command,
            cwd=work,
            env=environment_of(start, hook) | {"PEER_STEPS": str(told), "PEER_COUNT": str(case.steps)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            process.wait(case.most)
        except psutil.TimeoutExpired:
            raise PeerError(f"made fewer than {case.steps} steps in {case.most:.0f} s") from None
        finally:
            end(process)
    steps = steps_of(told.read_text(encoding="utf-8").splitlines() if told.exists() else [])
    if len(steps) < case.steps:
        reason = last_words(said.read_text(encoding="utf-8", errors="replace"))
        raise PeerError(f"ended after {len(steps)} of {case.steps} steps: {reason}")
    return seen(steps, began)


def steps_of(lines: Sequence[str]) -> list[dict[str, Any]]:
    """What the hook wrote of the optimizer with most steps: ours also makes a step with a small one, for its plan of memory."""
    steps = [json.loads(line) for line in lines]
    sizes = Counter(step["size"] for step in steps)
    return [step for step in steps if step["size"] == sizes.most_common(1)[0][0]]


def environment_of(start: Start, hook: Path) -> dict[str, str]:
    """Ours and the side's own: no card, no network, as many threads as there are cores, and our hook."""
    path = os.pathsep.join((str(hook), start.environment.get("PYTHONPATH", "")))
    common = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(num_threads())}
    return os.environ | common | start.environment | {"PYTHONPATH": path.rstrip(os.pathsep)}


def end(process: psutil.Popen) -> None:
    """The process and those that it started, should any be left."""
    if process.is_running():
        for each in [*process.children(recursive=True), process]:
            each.kill()
    process.wait()


def seen(steps: Sequence[dict[str, Any]], began: float) -> Run:
    """In all. The first interval is not counted: some of what is made on first use is made in it."""
    intervals = [later["at"] - earlier["at"] for earlier, later in pairwise(steps)][1:]
    last = steps[-1]
    first = steps[0]["at"] - began
    return Run(statistics.median(intervals), first, last["peak_bytes"], last["torch"], last["threads"])


def last_words(text: str) -> str:
    """The last error that says what it is about, or the last line of all."""
    lines = [line.strip() for line in COLOURS.sub("", text).splitlines() if line.strip()]
    errors = [line for line in lines if ERROR.match(line) and "CalledProcessError" not in line]
    return (errors or lines or ["it said nothing"])[-1][:300]


def measure(sides: Mapping[str, Side], case: Case, inputs: Inputs, rounds: int) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """Runs and reasons by side. Ours comes first in one round and last in the next; a side that failed is not asked again."""
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    reasons: dict[str, str] = {}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            if name in reasons:
                continue
            with tempfile.TemporaryDirectory() as place:
                pictures = shutil.copytree(inputs.pictures, Path(place) / "pictures")  # SimpleTuner writes files beside them
                try:
                    runs[name].append(run_side(sides[name], case, replace(inputs, pictures=pictures), Path(place)))
                except PeerError as error:
                    reasons[name] = str(error)
            print(f"round {number + 1} of {rounds}, {name}: {reasons.get(name) or runs[name][-1]}", file=sys.stderr, flush=True)
    return runs, reasons


def rows(runs: Mapping[str, Sequence[Run]], reasons: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each side: its medians and the ratios of ours to it, or why it has none."""
    return [{"side": name, "reason": reasons[name]} if name in reasons else row(name, runs) for name in {**runs, **reasons}]


def row(name: str, runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    its = runs[name]
    pairs = list(zip(runs[OURS], its, strict=False)) if name != OURS else []  # ours may have failed
    return {
        "side": name,
        "seconds_per_step": round(statistics.median(run.step for run in its), 4),
        "seconds_to_first_step": round(statistics.median(run.first for run in its), 2),
        "peak_gib": round(statistics.median(run.peak for run in its) / GIB, 3),
        "ours_to_it": {
            field: round(statistics.median(getattr(our, field) / getattr(theirs, field) for our, theirs in pairs), 4)
            for field in ("step", "first", "peak")
            if pairs
        },
        "rounds": len(its),
        "torch": its[-1].torch,
        "threads": its[-1].threads,
    }


def sides_of(arguments: argparse.Namespace) -> tuple[dict[str, Side], dict[str, str]]:
    """Those to run, ours first, and why the others are not."""
    sides: dict[str, Side] = {OURS: ours}
    if arguments.recompute:
        sides["ours, every block recomputed"] = ours_all_recomputed
    reasons = {}
    if arguments.diffusers_script:
        python = arguments.diffusers_python or Path(sys.executable)
        sides["diffusers script"] = diffusers_script(python.absolute(), arguments.diffusers_script.absolute())
    else:
        reasons["diffusers script"] = "not given: --diffusers-script FILE"
    if arguments.simpletuner:
        sides["SimpleTuner"] = simpletuner(arguments.simpletuner.absolute())
    else:
        reasons["SimpleTuner"] = "not given: --simpletuner PYTHON"
    if arguments.comfyui:
        home = arguments.comfyui.absolute()
        sides["TrainLoraNode"] = comfyui((arguments.comfyui_python or home / ".venv/bin/python").absolute(), home)
    else:
        reasons["TrainLoraNode"] = "not given: --comfyui FOLDER"
    return sides, reasons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusers-script", type=Path)
    parser.add_argument("--diffusers-python", type=Path, help="with torchvision, which the script imports; else this one")
    parser.add_argument("--simpletuner", type=Path, metavar="PYTHON")
    parser.add_argument("--comfyui", type=Path, metavar="FOLDER")
    parser.add_argument("--comfyui-python", type=Path, help="else that of the .venv in its folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of each run; the first two are not in the median")
    parser.add_argument("--double", type=int, default=1)
    parser.add_argument("--single", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a FLUX of width 256, only to see that it runs")
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", choices=("bf16", "no"), default="bf16", help="no is float32")
    parser.add_argument(
        "--recompute", action="store_true", help="gradient checkpointing of every block; TrainLoraNode needs it"
    )
    parser.add_argument("--most", type=float, default=1800, help="seconds that a run may take")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.steps < MIN_STEPS:
        parser.error(f"--steps {arguments.steps}: at least {MIN_STEPS}, for the first two are not counted")
    case = Case(**{field.name: getattr(arguments, field.name) for field in fields(Case)})
    shape = replace(SMALL if arguments.small else FULL, num_double=arguments.double, num_single=arguments.single)
    sides, lacking = sides_of(arguments)
    with tempfile.TemporaryDirectory() as folder:
        inputs = write_inputs(Path(folder), shape, arguments.pictures, arguments.pixels)
        runs, reasons = measure(sides, case, inputs, arguments.rounds)
    table = rows(runs, reasons | lacking)
    if arguments.json:
        settings = vars(case) | {"blocks": [shape.num_double, shape.num_single], "width": shape.width}
        print(json.dumps({"case": settings | {"pictures": arguments.pictures}, "rows": table, "machine": machine()}))
        return
    for each in table:
        print("  ".join(f"{name} {value}" for name, value in each.items()))


if __name__ == "__main__":
    main()
