"""Does the pack do harm, and with which versions does it work? python -m tools.versions [harm lowest newest ...] [--json]

`harm`: a fresh environment with ComfyUI's requirements, then ours: `pip freeze` may gain lines and lose none. The pack
is put into a copy of that ComfyUI, which is started and trains; then the pack is taken out again: every file of ComfyUI's is
as it was, and it starts.

The other rows: a fresh environment with our requirements in which diffusers, transformers and peft are the lowest that we
say, or the newest that there are, or one is the lowest among the newest; in each the tests of TESTS pass.

torch and its kin are those of ComfyUI's own environment, so that nothing large is fetched anew; environments share uv's cache.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "comfy"))  # its server serves here, too

MATCHED = ("diffusers", "transformers", "peft")
TESTS = ("tests/test_flux.py", "tests/test_attention.py", "tests/test_adapter_plan.py", "tests/test_adapter.py")
TRAIN_SECONDS = 900
FOR_TESTS = ("pytest", "pyarrow", "psutil")
TORCH = ("torch", "torchvision", "torchaudio")
NOT_OURS = {".git", ".venv", "models", "input", "output", "user", "temp"}  # of ComfyUI's folder
SPENT = ("output", "user", "temp", "server.log")  # what a run of the server may change
Freeze = dict[str, str]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.versions", description=__doc__.split("\n\n")[0])
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], help="default: all")
    parser.add_argument("--comfyui", type=Path, help="default: as the tests find it")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    from comfy_server import find_comfyui

    comfyui = args.comfyui or find_comfyui()
    if comfyui is None:
        parser.error("no ComfyUI is found; say where it is, with --comfyui")
    results = {}
    for row in args.rows or ROWS:
        with tempfile.TemporaryDirectory(prefix="versions-") as folder:
            results[row] = ROWS[row](Path(folder), comfyui)
        print(json.dumps({row: results[row]}) if args.json else f"{row}: {results[row]}", flush=True)
    return 0 if all(result["ok"] for result in results.values()) else 1


def uv(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["uv", *map(str, words)], cwd=ROOT, capture_output=True, text=True)


def new_environment(folder: Path) -> Path:
    """The interpreter of an environment without packages, but for pip."""
    made = uv("venv", "-q", "--seed", "--python", sys.executable, folder)
    assert made.returncode == 0, made.stderr
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def freeze(python: Path) -> Freeze:
    """What is installed, by name."""
    listed = subprocess.run([python, "-m", "pip", "freeze", "--all"], capture_output=True, text=True, check=True)
    return dict(line.split("==", 1) for line in listed.stdout.splitlines() if "==" in line)


def same_torch(comfyui: Path, folder: Path) -> Path:
    """A file of constraints: torch and its kin as that ComfyUI has them."""
    from comfy_server import find_python

    code = f"import importlib.metadata as m; print(*(f'{{name}}=={{m.version(name)}}' for name in {TORCH!r}), sep='\\n')"
    told = subprocess.run([find_python(comfyui), "-c", code], capture_output=True, text=True, check=True)
    path = folder / "torch.txt"
    path.write_text(told.stdout, encoding="utf-8")
    return path


# harm


def harm(folder: Path, comfyui: Path) -> dict[str, Any]:
    python, torch = new_environment(folder / "env"), same_torch(comfyui, folder)
    installed = uv("pip", "install", "-q", "--python", python, "-c", torch, "-r", comfyui / "requirements.txt")
    assert installed.returncode == 0, installed.stderr
    before = freeze(python)
    would = subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "-q",
            "--dry-run",
            "--report",
            folder / "report.json",
            "-r",
            ROOT / "requirements.txt",
        ],
        capture_output=True,
        text=True,
    )
    assert would.returncode == 0, would.stderr
    pips = {_plain(one["metadata"]["name"]) for one in json.loads((folder / "report.json").read_text())["install"]}
    done = uv("pip", "install", "-q", "--python", python, "-r", ROOT / "requirements.txt")
    assert done.returncode == 0, done.stderr
    after = freeze(python)
    copy = _copied(comfyui, folder / "ComfyUI")
    found = {
        "packages": len(before),
        "added": sorted(after.keys() - before.keys()),
        "changed": sorted(f"{name}: {before[name]} -> {after.get(name)}" for name in before if before[name] != after.get(name)),
        "pip_would_change": sorted(pips & {_plain(name) for name in before}),
        **_comes_and_goes(copy, python, folder),
    }
    clean = not (found["changed"] or found["pip_would_change"] or found["files_changed"] or found["packages_changed"])
    return {"ok": clean and found["trained"] and found["starts_without"], **found}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _copied(comfyui: Path, place: Path) -> Path:
    """ComfyUI's code, without what is its user's."""

    def left(at: str, names: list[str]) -> list[str]:
        return [name for name in names if name == "__pycache__" or (Path(at) == comfyui and name in NOT_OURS)]

    shutil.copytree(comfyui, place, ignore=left, symlinks=True)
    return place


def _comes_and_goes(comfyui: Path, python: Path, folder: Path) -> dict[str, Any]:
    """Start ComfyUI with the pack, train, stop, take the pack out, start again: what is another than before."""
    from comfy_server import PACK_NAME, start_server

    base = folder / "base"
    code, packages = digests(comfyui), stamps(python.parents[1])
    server = start_server(comfyui, python, base)
    try:
        nodes = {name for name, about in server.get("/object_info").items() if PACK_NAME in about["python_module"]}
        trained = _train(server)
    finally:
        server.stop()
        server.process.wait(30)
    pack = base / "custom_nodes" / PACK_NAME
    pack.unlink()
    left = sorted(path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file() and not _is_spent(path, base))
    shutil.move(base, folder / "used")
    server = start_server(comfyui, python, base, pack=None)
    try:
        without = not nodes & server.get("/object_info").keys()
    finally:
        server.stop()
        server.process.wait(30)
    changed = [*_differences(code, digests(comfyui)), *left]
    return {
        "nodes": len(nodes),
        "trained": trained,
        "files_changed": changed,
        "packages_changed": _differences(packages, stamps(python.parents[1])),
        "starts_without": without,
    }


def _train(server: Any) -> bool:
    """Whether the training of the example workflow comes to its end."""
    from comfy_client import queue
    from graphs import EXAMPLE, change, load_workflow, only
    from workflow import to_prompt

    prompt = to_prompt(load_workflow(EXAMPLE), server.get("/object_info"))
    prompt = change(only(prompt, "TrainLoRA"), "TrainLoRA", max_train_steps=2)
    prompt = change(prompt, "LoadFluxForTraining", mixed_precision="no")
    prompt = change(prompt, "ValidationConfig", validation_num_inference_steps=2)
    return queue(server.url, prompt, timeout=TRAIN_SECONDS).status == "success"


def _is_spent(path: Path, base: Path) -> bool:
    return path.relative_to(base).parts[0] in SPENT


def digests(folder: Path) -> dict[str, str]:
    """Of every file below the folder; compiled Python is left out, which any import writes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stamps(folder: Path) -> dict[str, str]:
    """The same of gigabytes: sizes and times."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): f"{path.stat().st_size} {path.stat().st_mtime_ns}" for path in files}


def _differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


# versions


def floors() -> dict[str, str]:
    """The lowest versions that we say, of MATCHED."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return {name: re.search(rf'"{name}>=([0-9.]+)"', text)[1] for name in MATCHED}


def dependencies() -> list[str]:
    """Everything that the trainer needs, as pyproject.toml says it."""
    listed = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.S | re.M)[1]
    return re.findall(r'"([^"]+)"', listed)


def versions(*lowest: str) -> Callable[[Path, Path], dict[str, Any]]:
    """The row in which these are the lowest that we say, and the others the newest that go with them."""

    def row(folder: Path, comfyui: Path) -> dict[str, Any]:
        python, torch = new_environment(folder / "env"), same_torch(comfyui, folder)
        pins = [f"{name}=={floors()[name]}" for name in lowest]
        made = uv("pip", "install", "-q", "--python", python, "-c", torch, *dependencies(), *FOR_TESTS, *pins)
        if made.returncode:
            return {"ok": False, "why": made.stderr.strip()[-600:]}
        found = {name: version for name, version in freeze(python).items() if name in (*MATCHED, "torch", "huggingface_hub")}
        tested = subprocess.run(
            [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS], cwd=ROOT, capture_output=True, text=True
        )
        lines = tested.stdout.strip().splitlines()
        failed = [line[:300] for line in lines if line.startswith(("FAILED", "ERROR"))]
        return {"ok": tested.returncode == 0, **found, "tests": lines[-1] if lines else tested.stderr[-600:], "failed": failed}

    return row


ROWS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "harm": harm,
    "lowest": versions(*MATCHED),
    "newest": versions(),
    **{f"lowest-{name}": versions(name) for name in MATCHED},
}

if __name__ == "__main__":
    sys.exit(main())
