"""Picture every node for its help page, in a real browser: python -m tools.node_pictures  (needs playwright and a chromium)

Each node stands alone on an empty canvas, as wide as it comes; what is seen of it becomes `web/docs/<Id>.jpg`.
"""

import io
import shutil
import tempfile
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.comfy.comfy_server import HOW_TO_GET_ONE, find_comfyui, find_python, start_server
from tools.refresh.help_tables import page_path
from tools.refresh.made import our_nodes

PLACE, EDGE, TITLE = 120, 10, 30  # pixels: where the node stands, what is seen around it, the height of its title
BROWSERS = ("chromium", "google-chrome", "chromium-browser")
SHOW = """name => {
    app.graph.clear();
    const node = LiteGraph.createNode(name), least = node.computeSize();
    node.pos = [0, 0];
    app.graph.add(node);
    node.setSize([Math.max(340, least[0]), least[1]]);
}"""
LOOK = """place => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [place, place]; app.canvas.setDirty(true, true); }"""
SIZE = "() => { const box = app.canvas.canvas.getBoundingClientRect(); return [box.x, box.y, ...app.graph.nodes[0].size]; }"


def picture(page: Page, node: str) -> Image.Image:
    """What the browser shows of a node."""
    page.evaluate(SHOW, node)
    for _ in range(2):  # the page moves the view once by itself
        time.sleep(0.7)
        page.evaluate(LOOK, PLACE)
    x, y, width, height = page.evaluate(SIZE)
    left, top = x + PLACE - EDGE, y + PLACE - TITLE
    clip = {"x": left, "y": top, "width": width + 2 * EDGE, "height": height + TITLE + EDGE}
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def main() -> None:
    comfyui = find_comfyui()
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if comfyui is None or browser_path is None:
        raise SystemExit(HOW_TO_GET_ONE if comfyui is None else f"no browser found: {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = start_server(comfyui, find_python(comfyui), Path(folder) / "comfyui")
        try:
            browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-dev-shm-usage"])
            page = browser.new_page(viewport={"width": 1200, "height": 1350})
            page.request.post(f"{server.url}/settings", data={"Comfy.TutorialCompleted": True})  # no templates over everything
            page.goto(server.url)
            page.wait_for_function("window.app?.vueAppReady", timeout=120_000)
            for node in our_nodes(server.get("/object_info")):
                picture(page, node).save(page_path(node).with_suffix(".jpg"), quality=82, optimize=True)
            browser.close()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
