"""What goes with a picture and lies in another folder under the same path and name: its mask, its reference.

Needs no torch, so that the index of a dataset can be shown before anything heavy is loaded.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ..errors import JobError
from ..file_names import expanded
from ..run_dir import PICTURE_SUFFIXES
from .find import Found, find_files

MAX_NAMED = 3


def companion_folder(given: str) -> Path | None:
    """The folder that a setting names, if any."""
    return expanded(given) if given.strip() else None


def find_companions(
    there: Path, folder: Path, pictures: Sequence[Path], *, kind: str, dataset_id: str, mend: str
) -> dict[Path, Found]:
    """The file below `there` of each picture below `folder`; JobError names the first that have none, or several.

    `kind` is what they are, 'mask', the setting of their folder is named after it; `mend` says what to do about missing ones.
    """
    if not there.is_dir():
        raise JobError(f"dataset {dataset_id!r}: there is no folder {there.absolute()} with {kind}s; correct {kind}_data_dir")
    by_name: dict[str, list[Found]] = defaultdict(list)
    for file in find_files(there, PICTURE_SUFFIXES).files:
        by_name[PurePosixPath(file.name).with_suffix("").as_posix()].append(file)
    found = {picture: by_name.get(picture.relative_to(folder).with_suffix("").as_posix(), []) for picture in pictures}
    missing = [str(picture) for picture, files in found.items() if not files]
    if missing:
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        named = ", ".join(missing[:MAX_NAMED])
        raise JobError(f"dataset {dataset_id!r}: no {kind} in {there.absolute()} for {named}{more}; {mend}")
    for picture, files in found.items():
        if len(files) > 1:
            both = " and ".join(str(file.path) for file in files)
            raise JobError(f"dataset {dataset_id!r}: {both} are {kind}s of one picture, {picture}; leave one")
    return {picture: files[0] for picture, files in found.items()}
