"""ComfyUI's page with this pack, in a real browser, for the tools that picture it (needs playwright and a chromium)."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tests.comfy.comfy_server import HOW_TO_GET_ONE, Server, find_comfyui, find_python, start_server

BROWSERS = ("chromium", "google-chrome", "chromium-browser")
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage"]


@contextmanager
def comfy_page(width: int, height: int, **settings: Any) -> Iterator[tuple[Server, Page]]:
    """A server of its own and its page, of that size in pixels; `settings` are ComfyUI's."""
    comfyui = find_comfyui()
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if comfyui is None or browser_path is None:
        raise SystemExit(HOW_TO_GET_ONE if comfyui is None else f"no browser found: {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = start_server(comfyui, find_python(comfyui), Path(folder) / "comfyui")
        try:
            browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
            page = browser.new_page(viewport={"width": width, "height": height})
            hidden = {"Comfy.TutorialCompleted": True}  # no templates over everything
            page.request.post(f"{server.url}/settings", data=hidden | settings)
            page.goto(server.url)
            page.wait_for_function("window.app?.vueAppReady && window.app.graph", timeout=120_000)
            yield server, page
            browser.close()
        finally:
            server.stop()
