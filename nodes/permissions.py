"""What a workflow may read: ComfyUI's own folders, and what the server's owner allows besides.

A workflow may come from a stranger, and so may the request that queues it. Of its own accord it reads pictures and models where
ComfyUI itself reads them. Everything else, other folders and the network, the owner of the server allows in a file that no
request can write:

    <ComfyUI>/user/flux_lora_studio.json      {"read_folders": ["/data/pictures"], "allow_network": true}

Paths are judged by their text first, before anything is looked up on the disk: to look up `//server/share` is to send one's
password there. Links that the owner has put into these folders lead where they lead.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..trainer_core.errors import JobError
from ..trainer_core.file_names import expanded, problem_of_path
from ..trainer_core.job import TrainJob
from ..trainer_core.job_paths import network_wishes, paths_of, paths_of_job
from ..trainer_core.run_dir import RunDir, dataset_digest
from ..trainer_core.runs import find_run
from ..trainer_core.specs.spec import Spec
from .folders import home_dir, input_dir, output_dir

PACK_DIR = Path(__file__).parents[1]
NOT_MODELS = ("custom_nodes", "configs")  # of ComfyUI's own table of folders
SETTINGS = "flux_lora_studio.json"


class Permissions(BaseModel):
    """The settings file. What it does not say of a workflow is not allowed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    read_folders: tuple[Path, ...] = Field((), description="Folders that workflows may read besides ComfyUI's own.")
    allow_network: bool = Field(False, description="Workflows may download, and report to services on the network.")
    standby: bool = Field(True, description="A trainer may wait with its libraries loaded while the page shows a TrainLoRA.")


def settings_path() -> Path:
    """Above the folders of ComfyUI's users, so that its own route for their files does not reach it."""
    return Path(folder_paths.get_user_directory()).absolute() / SETTINGS


def permissions() -> Permissions:
    """What the owner allows; JobError where the file cannot be understood, since to pass over it would surprise them."""
    path = settings_path()
    if not path.is_file():
        return Permissions()
    try:
        return Permissions.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise JobError(f"{path} cannot be read as settings: {error}; mend it, or delete it to allow nothing more") from None


def check_job(job: TrainJob, node: str) -> None:
    """JobError where the job reads what it may not, or would reach the network."""
    check_paths(job, node)
    wanted = network_wishes(job)
    if wanted and not permissions().allow_network:
        raise JobError(
            f"{node}: {', '.join(wanted)} is on, but a workflow may not use the network here; switch it off, or allow it with "
            f'"allow_network": true in {settings_path()}'
        )


def check_paths(job: TrainJob, node: str) -> None:
    """JobError where the job reads what it may not."""
    for field, path in paths_of_job(job):
        check_readable(path, field, node)


def check_part(spec: Spec, node: str) -> None:
    """JobError where one part of a job reads what it may not."""
    for field, path in paths_of(spec):
        check_readable(path, field, node)


def check_readable(path: Path, field: str, node: str) -> None:
    """JobError where the path lies outside of what may be read; it says how the owner allows it."""
    if problem := problem_of_path(path):
        raise JobError(f"{node}: {field} {str(path)[:200]!r} {problem}; give another path")
    if is_readable(path):
        return
    folder = json.dumps(str(Path(os.path.abspath(path)).parent if path.suffix else Path(os.path.abspath(path))))
    raise JobError(
        f"{node}: {field} {path} lies outside of ComfyUI's input, output and model folders. A workflow may be a stranger's, so "
        f'it reads other folders only where you allow it: write {{"read_folders": [{folder}]}} into {settings_path()} and '
        "queue it again, or put the files into ComfyUI's folders"
    )


def is_readable(path: Path) -> bool:
    """Whether a workflow may name this path. Without `..` its text decides; with it, where it really leads."""
    if problem_of_path(path):
        return False
    allowed = [Path(os.path.abspath(root)) for root in (*_own_folders(), *permissions().read_folders)]
    if not any(_inside(Path(os.path.abspath(path)), root) for root in allowed):
        return False
    return ".." not in path.parts or any(_inside(path.resolve(), root.resolve()) for root in allowed)


def digest_of(*places: str | None) -> str:
    """`dataset_digest` of what a workflow may read; the rest is not looked up, and `check_job` will refuse it."""
    named = [(place or "").strip() for place in places]
    return dataset_digest(*(place if place and _may_read(place) else "" for place in named))


def _may_read(place: str) -> bool:
    try:
        return is_readable(expanded(place))
    except JobError:
        return False


def own_run(run: Any, node: str) -> RunDir:
    """The run that came along a wire; JobError where it is none of this ComfyUI's, since a request may put any text there."""
    found = find_run(home_dir() / "runs", Path(str(run)).name)
    if found is None or os.path.abspath(str(run)) != os.path.abspath(found.root) or not found.job_path.exists():
        raise JobError(f"{node}: {run} holds no run; if it was deleted, train it again under another name")
    return found


def _own_folders() -> Iterator[Path]:
    yield from (input_dir(), output_dir(), PACK_DIR / "trainer_core" / "pico")
    for kind, (folders, _) in folder_paths.folder_names_and_paths.items():
        if kind not in NOT_MODELS:
            yield from map(Path, folders)
    yield Path(folder_paths.__file__).parent / "comfy"  # its tokenizers


def _inside(path: Path, root: Path) -> bool:
    """Whether it is the folder or lies in it; case does not part them where the system does not."""
    path, root = (Path(os.path.normcase(one)) for one in (path, root))
    return path == root or root in path.parents
