"""What holds of the nodes without any ComfyUI: read from their source, not run.

ComfyUI imports every pack at its start, so what the nodes import at the top of their files is what all its users wait for.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer_core.specs.adapter import LoraSpec
from trainer_core.specs.base import BaseModelSpec
from trainer_core.specs.dataset import DatasetSpec
from trainer_core.specs.flow import FlowSpec
from trainer_core.specs.optimizer import OptimizerSpec
from trainer_core.specs.publishing import PublishingSpec
from trainer_core.specs.training import TrainingSpec
from trainer_core.specs.validation import ValidationSpec

SPECS = (BaseModelSpec, DatasetSpec, LoraSpec, OptimizerSpec, FlowSpec, ValidationSpec, TrainingSpec, PublishingSpec)
PACK_ROOT = Path(__file__).parents[1]
NODES_DIR = PACK_ROOT / "nodes"
NODE_FILES = sorted(NODES_DIR.glob("*.py"))
LIGHT = {
    "PIL",
    "aiohttp",
    "annotated_types",
    "comfy_api",
    "filelock",
    "folder_paths",
    "numpy",
    "psutil",  # ComfyUI has it
    "pydantic",
} | sys.stdlib_module_names
DATA_DIR = PACK_ROOT / "trainer_core" / "data"
WITH_TORCH = {"batches", "cache", "encode", "images", "loader", "order", "too_long"}
CONTRACT = {
    "trainer_core",
    "trainer_core.commands",
    "trainer_core.data",
    *(f"trainer_core.data.{path.stem}" for path in DATA_DIR.glob("[a-z]*.py") if path.stem not in WITH_TORCH),
    "trainer_core.diagnosis",
    "trainer_core.errors",
    "trainer_core.event_file",
    "trainer_core.events",
    "trainer_core.file_names",
    "trainer_core.flux",
    "trainer_core.flux.flavours",
    "trainer_core.job",
    "trainer_core.job_file",
    "trainer_core.job_paths",
    "trainer_core.pico",
    "trainer_core.graph_parts",
    "trainer_core.half_written",
    "trainer_core.presets",
    "trainer_core.run_dir",
    "trainer_core.runs",
    "trainer_core.saved",
    "trainer_core.specs",
    "trainer_core.standby",
    "trainer_core.uncollected",
    "trainer_core.writing",
    *(f"trainer_core.specs.{path.stem}" for path in (PACK_ROOT / "trainer_core" / "specs").glob("[a-z]*.py")),
}
MOST_LINES_OF_EXECUTE = 25


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(nodes: list[ast.stmt], path: Path) -> Iterator[str]:
    """Full names of the modules that these statements import; what only type checkers see is left out."""
    package = path.relative_to(PACK_ROOT).with_suffix("").parts[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            yield from (as_module([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from imports(node.body + node.orelse, path)


def as_module(parts: list[str]) -> str:
    """The longest beginning of a dotted name that is a module of the pack."""
    while parts and module_path(".".join(filter(None, parts))) is None:
        parts = parts[:-1]
    return ".".join(filter(None, parts))


def module_path(name: str) -> Path | None:
    base = PACK_ROOT / Path(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def imported_at_start() -> set[str]:
    """Every module that importing the pack imports, followed through the pack's own."""
    seen: set[str] = set()
    waiting = list(imports(parse(PACK_ROOT / "__init__.py").body, PACK_ROOT / "__init__.py"))
    while waiting:
        name = waiting.pop()
        path = module_path(name)
        if name not in seen and path is not None:
            waiting += imports(parse(path).body, path)
            waiting += [name.rpartition(".")[0]] if "." in name else []
        seen.add(name)
    return seen


def test_importing_the_pack_imports_only_light_modules() -> None:
    foreign = {name for name in imported_at_start() if module_path(name) is None}
    assert {name.partition(".")[0] for name in foreign} <= LIGHT


def test_the_nodes_start_with_the_contract_of_the_core_and_no_more_of_it() -> None:
    started = imported_at_start()
    assert "nodes.train" in started, "this test follows no imports"
    assert {name for name in started if name.startswith("trainer_core")} <= CONTRACT


@pytest.mark.parametrize("path", NODE_FILES, ids=lambda path: path.stem)
def test_the_pack_s_own_modules_are_imported_relatively(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & {"nodes", "trainer_core"}
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").partition(".")[0] not in {"nodes", "trainer_core"}


def node_classes() -> dict[str, ast.ClassDef]:
    found = (node for path in NODE_FILES for node in ast.walk(parse(path)) if isinstance(node, ast.ClassDef))
    return {node.name: node for node in found if [ast.unparse(base) for base in node.bases] == ["io.ComfyNode"]}


def test_the_list_of_nodes_is_literal_and_complete() -> None:
    tree = parse(NODES_DIR / "__init__.py")
    values = [node.value for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "NODES"]
    assert len(values) == 1 and isinstance(values[0], ast.List)
    listed = [ast.unparse(item) for item in values[0].elts]
    assert sorted(listed) == sorted(node_classes())


def test_a_node_has_the_id_of_its_class_and_is_a_signature() -> None:
    for name, node in node_classes().items():
        assert f"'{name}'" in ast.unparse(node), name
        (execute,) = (item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "execute")
        assert execute.end_lineno - execute.body[0].lineno < MOST_LINES_OF_EXECUTE, name


def test_each_node_has_a_help_page() -> None:
    assert {path.stem for path in (PACK_ROOT / "web" / "docs").glob("*.md")} == set(node_classes())


def test_outside_comfyui_the_pack_imports_cleanly_and_hands_over_nothing() -> None:
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("pack", {str(PACK_ROOT / "__init__.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert not {{"comfy_entrypoint", "NODE_CLASS_MAPPINGS", "WEB_DIRECTORY"}} & vars(module).keys()
assert not {{"torch", "pydantic", "PIL"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_folded_away_is_a_field_of_the_job() -> None:
    values = [node.value for node in parse(NODES_DIR / "seldom.py").body if isinstance(node, ast.Assign)]
    folded = {item.value for item in values[0].args[0].elts}
    assert folded and folded <= {name for spec in SPECS for name in spec.model_fields}
