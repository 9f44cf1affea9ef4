"""What is published: the metadata that ComfyUI's registry reads, the archive that it is given, the wheel of the trainer.

The wheel holds `trainer_core` alone: the nodes live in ComfyUI's custom_nodes, and a top-level package `nodes` would clash with
ComfyUI's own. The archive holds the whole pack. Both are installed into an environment that has nothing, then one that has the
packages they need.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from PIL import Image

from support import ROOT
from tools.archive import archived_files, write_archive

NEEDED = ("nodes", "trainer_core", "web", "locales", "example_workflows", "docs")  # folders of the archive
ALONE = ("__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE", "CHANGELOG.md")
DATA = ("trainer_core/pico/weights/transformer.safetensors", "trainer_core/pico/weights/tokenizer.json")
OPERATING_SYSTEMS = (
    "Microsoft",
    "POSIX",
    "MacOS",
    "OS Independent",
)  # what the registry knows, as ComfyUI and comfy-cli have it
ACCELERATORS = ("GPU :: NVIDIA CUDA", "GPU :: AMD ROCm", "GPU :: Intel Arc", "NPU :: Huawei Ascend", "GPU :: Apple Metal")
UV = os.environ.get("UV") or shutil.which("uv")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_registry_knows_the_systems_and_cards(project: dict[str, Any]) -> None:
    classifiers = project["project"]["classifiers"]
    systems = [one.removeprefix("Operating System :: ") for one in classifiers if one.startswith("Operating System")]
    cards = [one.removeprefix("Environment :: ") for one in classifiers if one.startswith("Environment")]
    assert systems and all(one.startswith(OPERATING_SYSTEMS) for one in systems)
    assert cards and set(cards) <= set(ACCELERATORS)


def test_the_metadata_is_whole_and_its_addresses_agree(project: dict[str, Any]) -> None:
    about, comfy = project["project"], project["tool"]["comfy"]
    assert {"name", "version", "description", "readme", "license", "requires-python", "urls"} <= about.keys()
    assert {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui"} <= comfy.keys()
    assert len(about["version"].split(".")) == 3 and (ROOT / about["license"]["file"]).is_file()
    owner, repository = urlparse(about["urls"]["Repository"]).path.strip("/").split("/")
    assert (owner, repository) == (comfy["PublisherId"], about["name"])
    assert all(url.startswith(about["urls"]["Repository"]) for url in about["urls"].values())


def test_icon_and_banner_are_there_and_of_the_shape_that_is_wanted(project: dict[str, Any]) -> None:
    about, comfy = project["project"], project["tool"]["comfy"]
    place = urlparse(about["urls"]["Repository"]).path + "/main/"
    for name, (width, height), most in (("Icon", (1, 1), (400, 400)), ("Banner", (21, 9), (2100, 900))):
        path = urlparse(comfy[name]).path
        assert path.startswith(place)
        file = ROOT / path.removeprefix(place)
        with Image.open(file) as picture:
            assert picture.width * height == picture.height * width
            assert picture.width <= most[0] and picture.height <= most[1]
        assert file.stat().st_size < 50_000


def tracked(*folders: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, encoding="utf-8")
    if listed.returncode:
        pytest.skip("not a git checkout")
    return set(listed.stdout.split("\0")[:-1])


def test_the_archive_is_the_pack_and_nothing_of_the_workshop() -> None:
    wanted, files = tracked(*NEEDED) - {"docs/nodes.json"}, set(archived_files())
    assert wanted | set(ALONE) <= files and set(DATA) <= files
    rest = files - wanted - set(ALONE)
    assert not [name for name in rest if "/" in name], "a new folder: leave it out in .comfyignore, or name it here"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked, in a folder with the name that the registry's installer gives it."""
    tracked()
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder / "pack.zip")
    with zipfile.ZipFile(folder / "pack.zip") as packed:
        packed.extractall(folder / "custom_nodes" / "flux-lora-studio")
    return folder / "custom_nodes" / "flux-lora-studio"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is missing: python -m uv sync")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_all_of_the_trainer_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
        about = packed.read(next(name for name in packed.namelist() if name.endswith("METADATA"))).decode()
    assert names == tracked("trainer_core") and set(DATA) <= names
    assert "Project-URL: Repository" in about and "Requires-Dist: diffusers" in about


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment without any package."""
    if UV is None:
        pytest.skip("uv is missing: python -m pip install uv")
    folder = tmp_path_factory.mktemp("empty") / "env"
    subprocess.run([UV, "venv", "-q", "--python", sys.executable, folder], check=True)
    return folder


def run_in(environment: Path, program: str, *words: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run([scripts / program, *words], cwd=cwd or environment, env=variables, capture_output=True, text=True)


def lend_packages(environment: Path) -> None:
    """The packages of this environment, without what its own .pth files add: the project itself is not among them."""
    place = run_in(environment, "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    Path(place, "lent.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")


def test_wheel_and_archive_work_in_an_environment_that_had_nothing(wheel: Path, archive: Path, empty: Path) -> None:
    nothing = run_in(empty, "python", "-c", "import trainer_core")
    assert "No module named 'trainer_core'" in nothing.stderr
    pack = [
        "python",
        "-c",
        "import sys; sys.path.insert(0, '..'); pack = __import__('flux-lora-studio'); print(vars(pack).get('__all__'))",
    ]
    assert run_in(empty, *pack, cwd=archive).stdout.strip() == "None", "outside ComfyUI it hands over nothing"
    installing = [UV, "pip", "install", "-q", "--offline", "--no-deps", "--python", str(empty), str(wheel)]
    subprocess.run(installing, check=True)
    assert run_in(empty, "python", "-c", "import trainer_core").returncode == 0
    lend_packages(empty)
    told = run_in(empty, "flux-lora", "--help")
    assert told.returncode == 0 and "import-simpletuner" in told.stdout, told.stderr
    where = "import trainer_core.cli, trainer_core.pico as pico; print(pico.TRANSFORMER_PATH.is_file(), pico.TRANSFORMER_PATH)"
    assert run_in(empty, "python", "-c", where).stdout.startswith(f"True {empty}")
    assert (
        "True " + str(archive)
        in run_in(empty, "python", "-c", "import sys; sys.path.insert(0, '.'); " + where, cwd=archive).stdout
    )


@pytest.mark.slow  # installs torch and all else: gigabytes, where they are not in uv's cache
def test_the_wheel_trains_with_what_it_brings_along(wheel: Path, tmp_path: Path) -> None:
    if UV is None:
        pytest.skip("uv is missing: python -m pip install uv")
    subprocess.run([UV, "venv", "-q", "--python", sys.executable, tmp_path / "env"], check=True)
    subprocess.run([UV, "pip", "install", "-q", "--python", tmp_path / "env", wheel], check=True)
    job = json.loads(run_in(tmp_path / "env", "flux-lora", "demo", "--print-job").stdout)
    job["training"]["max_train_steps"], job["validation"]["num_validation_images"] = 2, 0
    job["validation"]["validation_prompts"] = []
    (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    trained = run_in(tmp_path / "env", "flux-lora", "run", "job.json", cwd=tmp_path)
    assert trained.returncode == 0 and "all as ComfyUI reads them" in trained.stdout, trained.stderr
