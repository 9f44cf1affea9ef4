"""Picture the first template after a run, in a real browser: python -m tools.graph_picture  (needs playwright and a chromium)

The template is run on pico with its own settings; then the canvas is seen from so far away that all of it fits, and becomes
`docs/graph.jpg`, the picture at the top of the README.
"""

import io
import json
import shutil
import tempfile
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.comfy.comfy_server import HOW_TO_GET_ONE, PACK_ROOT, Server, find_comfyui, find_python, start_server
from tools.node_pictures import BROWSERS

TEMPLATE = PACK_ROOT / "example_workflows" / "Train a LoRA and test it.json"
PICTURE = PACK_ROOT / "docs" / "graph.jpg"
SIZE = {"width": 3560, "height": 2060}  # so large that the graph is seen at its full size, text and all
WIDTH, QUALITY, EDGE = 1800, 80, 20  # of the picture; pixels around the graph
PATIENCE = 1800  # seconds; a busy machine is twenty times slower
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}  # nothing over the canvas
LOAD = "async workflow => { await app.loadGraphData(workflow, true, true, 'Train a LoRA and test it') }"
LOOK = """edge => {
    const place = app.canvas.canvas.getBoundingClientRect();
    const boxes = [...app.graph.nodes, ...app.graph.groups].map(one => one.boundingRect ?? one._bounding);
    const left = Math.min(...boxes.map(box => box[0])), top = Math.min(...boxes.map(box => box[1]));
    const right = Math.max(...boxes.map(box => box[0] + box[2])), bottom = Math.max(...boxes.map(box => box[1] + box[3]));
    const [x, y] = [place.x + 100, place.y + 100];
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [x - place.x - left, y - place.y - top];
    app.canvas.deselectAll?.();
    app.canvas.setDirty(true, true);
    return {x: x - edge, y: y - edge, width: right - left + 2 * edge, height: bottom - top + 2 * edge};
}"""


def wait_until_idle(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(server.get("/queue").values()):
        if time.monotonic() > deadline:
            raise SystemExit(f"the template did not end; the server's log:\n{server.log()[-3000:]}")
        time.sleep(2)


def main() -> None:
    comfyui = find_comfyui()
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if comfyui is None or browser_path is None:
        raise SystemExit(HOW_TO_GET_ONE if comfyui is None else f"no browser found: {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = start_server(comfyui, find_python(comfyui), Path(folder) / "comfyui")
        try:
            browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-dev-shm-usage"])
            page = browser.new_page(viewport=SIZE)
            page.request.post(f"{server.url}/settings", data=SETTINGS)
            page.goto(server.url)
            page.wait_for_function("window.app?.vueAppReady && window.app.graph", timeout=120_000)
            page.evaluate(LOAD, json.loads(TEMPLATE.read_text(encoding="utf-8")))
            page.get_by_role("button", name="Run", exact=True).first.click()
            time.sleep(5)
            wait_until_idle(server)
            for _ in range(3):  # the page moves the view once by itself
                time.sleep(2)
                clip = page.evaluate(LOOK, EDGE)
            image = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
            image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
            image.save(PICTURE, quality=QUALITY, optimize=True, progressive=True)
            browser.close()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
