"""Checkpoints: all that a run needs to go on as if it had never stopped.

`checkpoints/step-N/` holds adapter.safetensors (float32; as trained, not averaged), optimizer.safetensors and state.json
(losses, the optimiser's numbers, digests of the two files). It is filled under another name and renamed when complete, so a
checkpoint that exists is whole; one whose digests do not match (a damaged disk) is passed over for the one before. There is
no random state to keep: see `rng.py`.
"""

import hashlib
import logging
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch.nn import Parameter

from .optimizer_state import read_state, write_state
from .run_dir import read_json, write_atomically, write_json

log = logging.getLogger(__name__)

ADAPTER_FILE, OPTIMIZER_FILE, STATE_FILE = "adapter.safetensors", "optimizer.safetensors", "state.json"


def save_checkpoint(
    checkpoints_dir: Path,
    parameters: dict[str, Parameter],
    optimizer: torch.optim.Optimizer,
    losses: list[float],
    *,
    keep: int,
) -> Path:
    """Write the checkpoint of the step that the losses end with, and remove all but the newest `keep`."""
    step = len(losses)
    final = _folder(checkpoints_dir, step)
    if final.exists():
        return final
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors, numbers = read_state(optimizer)
    files = {
        ADAPTER_FILE: save({name: parameter.detach().cpu().contiguous() for name, parameter in parameters.items()}),
        OPTIMIZER_FILE: save(tensors),
    }
    for name, data in files.items():
        write_atomically(partial / name, data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    write_json(partial / STATE_FILE, {"digests": digests, "losses": losses, "optimizer": numbers})
    os.replace(partial, final)
    for old in list_checkpoints(checkpoints_dir)[keep:]:
        shutil.rmtree(old)
    return final


def list_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """Complete checkpoints, the newest first."""
    if not checkpoints_dir.is_dir():
        return []
    return sorted((path for path in checkpoints_dir.iterdir() if path.suffix != ".partial"), reverse=True)


def restore_latest(checkpoints_dir: Path, parameters: dict[str, Parameter], optimizer: torch.optim.Optimizer) -> list[float]:
    """Load the newest undamaged checkpoint into parameters and optimiser; the loss of each step done, [] without one."""
    for folder in list_checkpoints(checkpoints_dir):
        state = read_json(folder / STATE_FILE)
        damaged = [name for name, digest in state["digests"].items() if _digest(folder / name) != digest]
        if damaged:
            log.warning("checkpoint %s is damaged (%s); trying the one before", folder, ", ".join(damaged))
            continue
        saved = load_file(folder / ADAPTER_FILE)
        assert saved.keys() == parameters.keys(), "a checkpoint of another adapter in this run folder"
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])
        write_state(optimizer, load_file(folder / OPTIMIZER_FILE), state["optimizer"])
        return state["losses"]
    return []


def _folder(checkpoints_dir: Path, step: int) -> Path:
    return checkpoints_dir / f"step-{step:08d}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
