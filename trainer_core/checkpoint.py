"""Checkpoints: all that a run needs to go on as if it had never stopped.

`checkpoints/step-N/` holds adapter.safetensors (float32; as trained, not averaged), optimizer.safetensors, ema.safetensors
where there is a running average, losses.safetensors (float64, one a step), lora/ as ComfyUI reads it, and state.json: the
rest of the run's history, the optimiser's numbers, the digests of the other files and its own. It is filled under another
name and renamed when complete, so a checkpoint that exists is whole; one whose digests do not match (a damaged disk) is set
aside for the one before. There is no random state to keep: see `rng.py`.
"""

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch.nn import Parameter

from .ema import Ema
from .history import History
from .optimizer_state import read_state, write_state
from .saved import STATE_FILE, checkpoint_dir, list_checkpoints
from .writing import digest_of, read_sealed, write_atomically, write_sealed

log = logging.getLogger(__name__)

UNREADABLE = (errno.ENOENT, errno.EIO)
ADAPTER_FILE, OPTIMIZER_FILE, EMA_FILE = "adapter.safetensors", "optimizer.safetensors", "ema.safetensors"
LOSSES_FILE = "losses.safetensors"


def save_checkpoint(
    checkpoints_dir: Path,
    parameters: dict[str, Parameter],
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    history: History,
    export: Callable[[Path], None],
    *,
    keep: int,
) -> Path:
    """Write the checkpoint of the step that the history ends with. `export` adds the LoRA to the folder that it is given.

    Of the older ones the newest stay, `keep` with this one, and the one of the best evaluation.
    """
    final = checkpoint_dir(checkpoints_dir, history.step)
    if final.exists():
        return final
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    states, numbers = read_state(optimizer)
    losses = torch.tensor(history.losses, dtype=torch.float64)
    tensors = {ADAPTER_FILE: dict(parameters), OPTIMIZER_FILE: states, LOSSES_FILE: {"losses": losses}}
    if ema is not None:
        tensors[EMA_FILE] = ema.tensors
    try:
        for name, content in tensors.items():
            write_atomically(partial / name, save({key: t.detach().cpu().contiguous() for key, t in content.items()}))
        export(partial)
        digests = {path.relative_to(partial).as_posix(): digest_of(path) for path in sorted(partial.rglob("*.safetensors"))}
        write_sealed(partial / STATE_FILE, {"digests": digests, "history": history.to_json(), "optimizer": numbers})
        os.replace(partial, final)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)  # room for what is to be said of it
        raise
    best = checkpoint_dir(checkpoints_dir, history.best.step) if history.best else None
    for old in list_checkpoints(checkpoints_dir)[keep:]:
        if old != best:
            shutil.rmtree(_set_aside(old, ".partial"))
    return final


def restore_latest(
    checkpoints_dir: Path, parameters: dict[str, Parameter], optimizer: torch.optim.Optimizer, ema: Ema | None
) -> History:
    """Load the newest undamaged checkpoint into parameters, optimiser and average; its history, an empty one without any."""
    for folder in list_checkpoints(checkpoints_dir):
        state = undamaged_state(folder)
        if state is None:
            continue
        saved = load_file(folder / ADAPTER_FILE)
        assert saved.keys() == parameters.keys(), "a checkpoint of another adapter in this run folder"
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])
            if ema is not None:
                for name, average in load_file(folder / EMA_FILE).items():
                    ema.tensors[name].copy_(average)
        write_state(optimizer, load_file(folder / OPTIMIZER_FILE), state["optimizer"])
        return history_in(folder, state)
    return History()


def history_in(folder: Path, state: dict) -> History:
    """The history of an undamaged checkpoint, whose state.json holds this."""
    has_file = LOSSES_FILE in state["digests"]  # earlier versions kept them in state.json
    losses = load_file(folder / LOSSES_FILE)["losses"].tolist() if has_file else state["history"]["losses"]
    return History.from_json(state["history"], losses)


def undamaged_state(folder: Path) -> dict | None:
    """The checkpoint's state.json; None, with a warning and the folder set aside, where the disk has damaged a file of it."""
    try:
        state = read_sealed(folder / STATE_FILE)
        damaged = [name for name, digest in state["digests"].items() if digest_of(folder / name) != digest]
    except ValueError as error:
        damaged = [str(error)]
    except OSError as error:
        if error.errno not in UNREADABLE:  # the checkpoint may be whole: memory, or the drive, is what is lacking
            raise
        damaged = [str(error)]
    if not damaged:
        return state
    log.warning("checkpoint %s is damaged (%s) and set aside; trying the one before", folder, ", ".join(damaged))
    _set_aside(folder, ".damaged")
    return None


def _set_aside(folder: Path, suffix: str) -> Path:
    """Rename a checkpoint so that it is none any more; its new path."""
    aside = folder.with_name(folder.name + suffix)
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)
