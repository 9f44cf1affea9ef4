"""What a run writes of its adapter: checkpoints, and LoRA files that are read back and compared after each save."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .adapter.lora_file import SAVE_DTYPES, adapter_tensors, export_lora, lora_metadata
from .adapter.verify import IDLE, changes_nothing, verify_lora
from .checkpoint import save_checkpoint
from .context import RunContext
from .modelspec import thumbnail_of
from .run_dir import RunDir
from .saved import LORA_DIR, checkpoint_dir
from .setup import Setup
from .trainee import Trainee
from .writing import read_sealed, write_sealed


def save_state(setup: Setup, trainee: Trainee, context: RunContext) -> None:
    """A checkpoint of the trainee as it stands, with the LoRA files in it, verified; by the first process, for all."""
    if not context.group.is_first:
        return
    history = trainee.history
    context.run_dir.check_there()
    path = save_checkpoint(
        context.run_dir.checkpoints_dir,
        trainee.parameters,
        trainee.optimizer,
        trainee.ema,
        history,
        lambda folder: export_all(setup, trainee, folder / LORA_DIR, context, history.thumbnail),
        keep=setup.job.training.checkpoints_total_limit,
    )
    context.events.emit("checkpoint", step=history.step, path=str(path))
    for lora in sorted((path / LORA_DIR).iterdir()):
        verify(setup, trainee, lora, context)


def save_loras(setup: Setup, trainee: Trainee, context: RunContext, pictures: Sequence[Path] = ()) -> dict[str, Any]:
    """The trained LoRA, its running average and the best one, as files of the run folder; the fields of the result. The first
    of the `pictures` that it made becomes their thumbnail."""
    context.events.phase("save", 0, 1)
    run_dir, best = context.run_dir, trainee.history.best
    run_dir.check_there()
    export_all(setup, trainee, run_dir.root, context, thumbnail_of(pictures[0]) if pictures else "")
    lora, ema = run_dir.lora_path(setup.job.name), run_dir.lora_path(f"{setup.job.name}-ema")
    keys = verify(setup, trainee, lora, context)
    if trainee.ema is not None:
        verify(setup, trainee, ema, context)
    context.events.phase("save", 1, 1)
    return {
        "lora": lora,
        "ema_lora": ema if trainee.ema is not None else None,
        "best_lora": checkpoint_dir(run_dir.checkpoints_dir, best.step) / LORA_DIR / lora.name if best else None,
        "best_step": best.step if best else None,
        "verified_keys": keys,
    }


def export_all(setup: Setup, trainee: Trainee, folder: Path, context: RunContext, thumbnail: str) -> None:
    """NAME.safetensors, and NAME-ema.safetensors where there is an average."""
    metadata = lora_metadata(
        setup.job,
        setup.adapter,
        setup.flavour,
        context.run_dir.run_id,
        trainee.history.step,
        started=trainee.history.started,
        thumbnail=thumbnail,
    )
    names = {setup.job.name: False} | ({f"{setup.job.name}-ema": True} if trainee.ema is not None else {})
    for name, averaged in names.items():
        path = folder / f"{name}.safetensors"
        with trainee.as_used(ema=averaged):
            export_lora(path, trainee.transformer, setup.adapter, SAVE_DTYPES[setup.job.lora.lora_save_precision], metadata)


def verify(setup: Setup, trainee: Trainee, path: Path, context: RunContext) -> int:
    """Read the file back as ComfyUI does; the number of its keys, all of which matched."""
    verification = verify_lora(path, setup.shape, setup.adapter)
    context.events.emit("verified", path=str(path), matched=verification.matched, keys=verification.keys)
    is_right = verification.complete or (verification.problems == (IDLE,) and _is_idle(setup, trainee, path))
    assert is_right, f"the LoRA just written is wrong: {verification.problems}"
    note_verification(context.run_dir, path, verification.matched, verification.keys)
    return verification.keys


def _is_idle(setup: Setup, trainee: Trainee, path: Path) -> bool:
    """Whether the adapter of this file changes nothing as it is in memory: before the first step, and as long as all steps were
    on regularisation pictures, whose target is the base itself."""
    with trainee.as_used(ema=path.stem != setup.job.name):
        return changes_nothing(
            adapter_tensors(trainee.transformer, setup.adapter, SAVE_DTYPES[setup.job.lora.lora_save_precision])
        )


def note_verification(run_dir: RunDir, path: Path, matched: int, keys: int) -> None:
    """Into the manifest, under the file's path in the run folder."""
    manifest = read_sealed(run_dir.manifest_path)
    manifest["verified"] = manifest.get("verified", {}) | {
        path.relative_to(run_dir.root).as_posix(): f"{matched} of {keys} keys"
    }
    write_sealed(run_dir.manifest_path, manifest)
