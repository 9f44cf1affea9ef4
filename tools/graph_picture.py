"""Picture the first template after a run, in a real browser: python -m tools.graph_picture  (needs playwright and a chromium)

The template is run on pico with its own settings; then the canvas is seen from so far away that all of it fits, and becomes
`docs/graph.jpg`, the picture at the top of the README.
"""

import io
import json
import time

from PIL import Image

from tests.comfy.comfy_server import PACK_ROOT, Server
from tools.page import comfy_page

TEMPLATE = PACK_ROOT / "example_workflows" / "Train a LoRA and test it.json"
PICTURE = PACK_ROOT / "docs" / "graph.jpg"
SIZE = (3560, 2760)  # so large that the graph is seen at its full size, text and all
WIDTH, QUALITY, EDGE = 1800, 80, 20  # of the picture; pixels around the graph
PATIENCE = 1800  # seconds; a busy machine is twenty times slower
SETTINGS = {"Comfy.Minimap.Visible": False}  # nothing over the canvas
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
    with comfy_page(*SIZE, **SETTINGS) as (server, page):
        page.evaluate(LOAD, json.loads(TEMPLATE.read_text(encoding="utf-8")))
        page.get_by_role("button", name="Run", exact=True).first.click()
        time.sleep(5)
        wait_until_idle(server)
        page.locator(".fls-notice").wait_for(state="detached", timeout=60_000)  # the word that a LoRA is new
        for _ in range(3):  # the page moves the view once by itself
            time.sleep(2)
            clip = page.evaluate(LOOK, EDGE)
        image = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    image.save(PICTURE, quality=QUALITY, optimize=True, progressive=True)


if __name__ == "__main__":
    main()
