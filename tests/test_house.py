"""The rules of the house that a machine can hold: layers, sizes, and nothing of one machine in the repository."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from support import ROOT

CODE = sorted(path for folder in ("trainer_core", "nodes", "tools") for path in (ROOT / folder).rglob("*.py"))
WITH_TORCH = {"aside", "batches", "cache", "encode", "faces", "images", "loader", "order", "too_long"}  # of trainer_core/data
LIGHT = {
    "job",
    "specs",
    *(f"specs.{path.stem}" for path in (ROOT / "trainer_core" / "specs").glob("[a-z]*.py")),
    "job_file",
    "file_names",
    "safetensors_header",
    "job_paths",
    "commands",
    "diagnosis",
    "events",
    "event_file",
    "half_written",
    "run_dir",
    "runs",
    "saved",
    "standby",
    "writing",
    "errors",
    "pico",
    "presets",
    "flux.flavours",
    "graph",
    "graph_job",
    "graph_parts",
    *(f"importers.{path.stem}" for path in (ROOT / "trainer_core" / "importers").glob("[a-z]*.py")),
    *(f"data.{path.stem}" for path in (ROOT / "trainer_core" / "data").glob("[a-z]*.py") if path.stem not in WITH_TORCH),
}
HEAVY = {"torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "matplotlib"}
COMFY = {"aiohttp", "comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server", "execution"}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Full names of what a file imports; relative ones begin with dots."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_has_one_idea_says_it_at_the_top_and_stays_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "no module docstring"


def test_the_core_knows_nothing_of_comfyui():
    for path in (ROOT / "trainer_core").rglob("*.py"):
        outside = {name.split(".")[0] for name in imports(path) if not name.startswith(".")}
        assert not outside & COMFY, f"{path} imports {outside & COMFY}"
        assert "trainer_core" not in outside, f"{path}: imports inside the core are relative"


def test_the_contract_is_light():
    for name in LIGHT - {"pico", "specs"}:
        path = ROOT / "trainer_core" / f"{name.replace('.', '/')}.py"
        outside = {module.split(".")[0] for module in imports(path) if not module.startswith(".")}
        assert not outside & HEAVY, f"{path} imports {outside & HEAVY}"


def test_plain_pip_and_comfyui_get_the_same_floors():
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    extra = {line for line in lines if line and not line.startswith("#")}
    assert extra <= set(project["dependencies"])
    assert all(re.fullmatch(r"[a-z-]+>=[0-9.]+", line) for line in project["dependencies"]), "floors, never pins"


def test_nothing_of_one_machine_and_no_half_merged_file_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert "uv.lock" not in listed.stdout.split()
    places = r"/(roo[t]|hom[e])/\w+|/wor[k]/(main|shared)"  # letters in brackets, so that this file is looked at, too
    hosts = r"pythonhoste[d]|registry\.npmj[s]|(pyp[i]|debia[n])\.org"
    wrong = re.compile(rf"{places}|{hosts}|^[<>]{{7}} ", re.MULTILINE)
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".json", ".js", ".txt", ".yml"}:
            found = wrong.search(path.read_text(encoding="utf-8"))
            assert not found, f"{name}: {found[0]}"
