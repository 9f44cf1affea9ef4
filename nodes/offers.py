"""Copies of trained LoRAs in the folder where ComfyUI's loaders look, under names that stay in it."""

import filecmp
import os
import shutil
from pathlib import Path

from ..trainer_core.errors import JobError
from ..trainer_core.file_names import problem_of
from ..trainer_core.half_written import unfinished
from ..trainer_core.run_dir import RunDir
from ..trainer_core.runs import find_run
from ..trainer_core.saved import find_lora
from .folders import home_dir, loras_dir

SUFFIX = ".safetensors"
MOST_FOLDERS = 4


def offer(lora: Path, path: Path) -> Path:
    """Copy the LoRA to where ComfyUI's LoRA loaders find it, over whatever else lies there."""
    if not (path.exists() and filecmp.cmp(path, lora, shallow=False)):
        with unfinished(path.parent) as new:
            shutil.copyfile(lora, new)
            os.replace(new, path)
    return path


def copy_lora(run: RunDir, which: str, name: str) -> Path:
    """The copy of the run's LoRA `which` under that name, or folder/name, below ComfyUI's LoRA folder.

    JobError where there is no such LoRA, where the name leaves the folder, is that of another run, or is taken by another LoRA.
    """
    path, lora = place(name, run.run_id), _lora(run, which)
    if lora.suffix != SUFFIX or run.root.resolve() not in lora.resolve().parents:
        raise JobError(f"the LoRA {which!r} of run {run.run_id} does not lie in its folder; train it again under another name")
    return keep(lora, path)


def keep(lora: Path, path: Path) -> Path:
    """A copy of the file at `path`; JobError where another one lies there."""
    if path.exists():
        if not filecmp.cmp(path, lora, shallow=False):
            raise JobError(f"{path.name} is there already and another LoRA; choose another name")
        return path
    return offer(lora, path)


def _lora(run: RunDir, which: str) -> Path:
    try:
        return find_lora(run, which).path
    except JobError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise JobError(f"the files of run {run.run_id} that name its LoRAs are damaged; queue its graph again") from None


def place(name: str, run_id: str = "") -> Path:
    """The file of that name; JobError where it would lie elsewhere than in the LoRA folder, links included, or where Train LoRA
    puts the LoRA of a run other than this one."""
    folder = loras_dir()
    parts = name.strip().replace("\\", "/").removesuffix(SUFFIX).split("/")
    if len(parts) > MOST_FOLDERS or ".." in parts:
        raise JobError(f"the name {name!r} leaves the LoRA folder; give a name, or folder/name")
    for part in parts:
        if problem := problem_of(part):
            raise JobError(f"the name {name!r} cannot be that of a LoRA: {part!r} {problem}; give a name, or folder/name")
    path = folder.joinpath(*parts[:-1], f"{parts[-1]}{SUFFIX}")
    if folder.resolve() not in path.resolve().parents:
        raise JobError(f"the name {name!r} leaves the LoRA folder; give a name, or folder/name")
    if len(parts) == 1 and path.stem != run_id and find_run(home_dir() / "runs", path.stem):
        raise JobError(f"{path.stem} is the name of a run, whose LoRA Train LoRA keeps there; choose another name")
    return path
