"""A real ComfyUI and a real browser; where one is missing the tests skip and say how to get it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_server import HOW_TO_GET_ONE, Server, find_comfyui, find_python, start_server

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage"]
FRONTEND = Path("comfyui_frontend_package") / "static"
NEWEST_PLACES = (Path.home() / "frontend-newest", Path.home() / "ComfyUI" / "frontend-newest")
HOW_TO_GET_THE_NEWEST = (
    "no newer frontend found: pip install --no-deps --target ~/frontend-newest comfyui-frontend-package, "
    "or set COMFYUI_FRONTEND to its folder static"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: python -m pip install playwright")
    named = os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if named is None:
        pytest.skip("no chromium found: apt install chromium, or set CHROMIUM_PATH")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=named, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """ComfyUI with the frontend that it ships."""
    yield from _server(tmp_path_factory.mktemp("shipped"))


@pytest.fixture(scope="session")
def newest(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same ComfyUI with the newest frontend."""
    named = os.environ.get("COMFYUI_FRONTEND")
    places = [Path(named)] if named else [place / FRONTEND for place in NEWEST_PLACES]
    found = next((place for place in places if (place / "index.html").is_file()), None)
    if found is None:
        pytest.skip(HOW_TO_GET_THE_NEWEST)
    yield from _server(tmp_path_factory.mktemp("newest"), "--front-end-root", str(found))


def _server(base_dir: Path, *flags: str) -> Iterator[Server]:
    comfyui = find_comfyui()
    if comfyui is None:
        pytest.skip(HOW_TO_GET_ONE)
    running = start_server(comfyui, find_python(comfyui), base_dir, *flags)
    yield running
    running.stop()
