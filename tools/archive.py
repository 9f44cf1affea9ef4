"""The archive that ComfyUI's registry would be given: python -m tools.archive FILE.zip

As `comfy node publish` packs it: what git knows, without what `.comfyignore` names. Unpacked into `ComfyUI/custom_nodes/` it is
the pack.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
IGNORED = ".comfyignore"


def archived_files() -> list[str]:
    """Paths below the root, with forward slashes."""
    return sorted(set(_git("ls-files")) - set(_git("ls-files", "--cached", "--ignored", f"--exclude-from={IGNORED}")))


def write_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in archived_files():
            archive.write(ROOT / name, name)


def _git(*arguments: str) -> list[str]:
    command = ["git", "-c", "core.quotepath=off", *arguments, "-z"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout.split("\0")[:-1]


if __name__ == "__main__":
    write_archive(Path(sys.argv[1]))
