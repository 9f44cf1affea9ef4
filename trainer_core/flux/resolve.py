"""Where each part of the base is: from the paths of a job, a whole FLUX in one place, or the hub where that is allowed.

A path of its own wins over `pretrained_model_name_or_path`. Each may be a file, a folder of diffusers' (whole, with its
subfolders, or one part with its files at the top, as transformer-only fine-tunes have them), or a hub id such as
`black-forest-labs/FLUX.1-dev`. Hub ids are looked up in the local cache; only with `allow_download` is anything fetched, and
then only what is missing here.
"""

import re
from dataclasses import fields
from pathlib import Path

from ..errors import JobError
from ..file_names import expanded
from ..specs.base import WHOLE_MODEL_FIELD, BaseModelSpec
from .dialects import PARTS, parts_in
from .files import PICO_FILES, ModelFiles
from .tensors import INDEX_SUFFIX, open_tensors

NAMES = tuple(field.name for field in fields(ModelFiles))
SUBFOLDERS = {  # diffusers' names
    "transformer": "transformer",
    "vae": "vae",
    "clip_l": "text_encoder",
    "t5": "text_encoder_2",
    "clip_tokenizer": "tokenizer",
    "t5_tokenizer": "tokenizer_2",
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TOP_PATTERNS = ("diffusion_pytorch_model*",)  # a repository that holds one part alone


def resolve_files(base: BaseModelSpec) -> ModelFiles:
    """The files of this base; one JobError names every one that is missing."""
    if base.model_flavour == "pico":
        return PICO_FILES
    given = {name: getattr(base, f"{name}_path").strip() for name in NAMES}
    wanted = [name for name in NAMES if not given[name]]
    found: dict[str, Path] = {}
    problems = []
    for name in NAMES:
        if given[name]:
            try:
                place = _locate(given[name], f"{name}_path", [name], base.allow_download)
                found[name] = _inside(place, name)
            except JobError as error:
                problems.append(str(error))
    if wanted:
        whole = base.pretrained_model_name_or_path.strip()
        try:
            place = _locate(whole, WHOLE_MODEL_FIELD, wanted, base.allow_download)
            inside = _parts_of(place)
            found |= {name: inside[name] for name in wanted if name in inside}
            problems += [f"base.{name}_path: none is in {place}; name one" for name in wanted if name not in inside]
        except JobError as error:
            problems.append(str(error))
    if problems:
        raise JobError("\n".join(problems) + "\ncorrect the path, or put the file there")
    return ModelFiles(**found)


def _locate(value: str, field: str, wanted: list[str], allow_download: bool) -> Path:
    """The file or folder of this name: on disk, in the hub's cache, or, where that is allowed, on the hub."""
    path = expanded(value)
    if path.exists():
        return path
    if not HUB_ID.fullmatch(value) or path.suffix.lower() in (".safetensors", ".gguf"):
        raise JobError(f"base.{field}: there is no file {path}")
    return _from_hub(value, field, wanted, allow_download)


def _from_hub(repo: str, field: str, wanted: list[str], allow_download: bool) -> Path:
    """The folder of the hub's cache with what is wanted of this repository."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = [f"{SUBFOLDERS[name]}/{kind}" for name in wanted for kind in ("*.safetensors", "*.json", "*.txt", "*.model")]
    try:
        folder = Path(snapshot_download(repo, allow_patterns=[*patterns, *TOP_PATTERNS], local_files_only=not allow_download))
    except GatedRepoError:
        raise JobError(
            f"base.{field}: {repo} is given only to those who accepted its licence; accept it on its page on the hub, log in "
            "with `hf auth login`, and try again"
        ) from None
    except OfflineModeIsEnabled:
        raise JobError(f"base.{field}: {repo} cannot be fetched while HF_HUB_OFFLINE is set; unset it") from None
    except LocalEntryNotFoundError:
        if allow_download:
            raise JobError(f"base.{field}: {repo} is not in the hub's cache and the hub cannot be reached") from None
        raise JobError(
            f"base.{field}: there is no file or folder {repo!r} here, nor is it in the hub's cache; correct it, or set "
            "allow_download if it is a hub id"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise JobError(f"base.{field}: {repo} cannot be fetched: {str(error).splitlines()[0]}") from None
    return folder


def _parts_of(place: Path) -> dict[str, Path]:
    """What a whole model holds: the subfolders of a folder, the parts inside a file, or the one part of a plain folder."""
    if place.is_dir():
        inside = {name: place / folder for name, folder in SUBFOLDERS.items() if (place / folder).is_dir()}
        if inside or not _has_weights(place):
            return inside
    return dict.fromkeys((name for name in parts_in(open_tensors(place)) if name in PARTS), place)


def _inside(place: Path, name: str) -> Path:
    """The part's own subfolder, where the folder is that of a whole model."""
    folder = place / SUBFOLDERS[name]
    return folder if place.is_dir() and folder.is_dir() else place


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob(f"*{INDEX_SUFFIX}"))
