"""What a run has saved, and which of its LoRAs is meant: the final one, the best, the running average, or that of a step.

A run that is not finished has its checkpoints. Light: ComfyUI's nodes ask it too.
"""

import re
from contextlib import suppress
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

from .errors import JobError
from .run_dir import RunDir
from .writing import Damaged, digest_of, read_sealed

LORA_DIR, STATE_FILE = "lora", "state.json"
CHECKPOINT = re.compile(r"step-\d{8,12}")  # its folder's name
FINAL, BEST, EMA, LATEST = "final", "best", "ema", "latest"


class SavedLora(NamedTuple):
    """A LoRA file of a run, with the step that it is of, and whether it is the running average."""

    path: Path
    step: int
    is_ema: bool = False


def checkpoint_dir(checkpoints_dir: Path, step: int) -> Path:
    """The folder of the checkpoint of this step."""
    return checkpoints_dir / f"step-{step:08d}"


def list_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """Complete checkpoints, the newest first; whatever else lies beside them is passed over."""
    if not checkpoints_dir.is_dir():
        return []
    return sorted((path for path in checkpoints_dir.iterdir() if CHECKPOINT.fullmatch(path.name)), reverse=True)


def list_steps(run_dir: RunDir) -> list[int]:
    """The steps of the run's checkpoints, in their order."""
    return sorted(int(path.name.removeprefix("step-")) for path in list_checkpoints(run_dir.checkpoints_dir))


def find_lora(run_dir: RunDir, which: str) -> SavedLora:
    """The LoRA that `which` names: final, best, ema, latest (finished or not), a step, or a step with '-ema' behind it.

    JobError lists what there is.
    """
    which, result, name = which.strip().lower() or FINAL, run_dir.result(), run_dir.job().name
    steps = list_steps(run_dir)
    if which in (FINAL, LATEST) and result:
        return SavedLora(_undamaged(Path(result["lora"]), result["digests"]), result["steps"])
    if which == BEST and result and result["best_lora"]:
        which = str(result["best_step"])
    best = None if result else best_step(run_dir)
    if which == BEST and best in steps:
        which = str(best)
    if which == EMA and result and result["ema_lora"]:
        return SavedLora(_undamaged(Path(result["ema_lora"]), result["digests"]), result["steps"], True)
    if which == LATEST and steps:
        which = str(steps[-1])
    number, _, kind = which.partition("-")
    if number.isdigit() and int(number) in steps and kind in ("", EMA):
        folder = checkpoint_dir(run_dir.checkpoints_dir, int(number))
        path = folder / LORA_DIR / f"{name}{'-ema' if kind else ''}.safetensors"
        if path.exists():
            digest = _told(folder, "digests", f"{LORA_DIR}/{path.name}")
            return SavedLora(_undamaged(path, {path.name: digest}), int(number), bool(kind))
    known = (
        [FINAL] * bool(result)
        + [BEST] * (best in steps or bool(result and result["best_lora"]))
        + [EMA] * bool(result and result["ema_lora"])
    )
    there = ", ".join([*known, *map(str, steps)])
    raise JobError(f"run {run_dir.run_id} has no LoRA {which!r}; there is: {there or 'nothing yet, let it save first'}")


def _undamaged(path: Path, digests: dict[str, str]) -> Path:
    """The file, if it is what was written; JobError where it is not. A run of an earlier version has no digests."""
    if digests and digest_of(path) != digests.get(path.name):
        raise Damaged(f"{path} is damaged or gone; queue its training again, which mends it, or choose another checkpoint")
    return path


def _told(checkpoint: Path, *names: str) -> Any:
    """What the checkpoint's state says under these names, one inside the other; None where it says nothing. Damaged as of
    `read_sealed`."""
    with suppress(FileNotFoundError, LookupError, TypeError):
        return reduce(getitem, names, read_sealed(checkpoint / STATE_FILE))
    return None


def best_step(run_dir: RunDir) -> int | None:
    """The step of the lowest held-out loss of a trained adapter, the earliest of equals; None where none was measured."""
    trained = {step: loss for step, loss in held_out_losses(run_dir).items() if step}
    return min(trained, key=lambda step: (trained[step], step), default=None)


def held_out_losses(run_dir: RunDir) -> dict[int, float]:
    """The held-out loss by step, of all evaluations that the run remembers."""
    result = run_dir.result()
    evaluations = result["evaluations"] if result else []
    if not result and (checkpoints := list_checkpoints(run_dir.checkpoints_dir)):
        evaluations = _told(checkpoints[0], "history", "evaluations") or []
    return {evaluation["step"]: evaluation["loss"] for evaluation in evaluations}
