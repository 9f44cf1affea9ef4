"""Picture every node for its help page, in a real browser: python -m tools.node_pictures  (needs playwright and a chromium)

Each node stands alone on an empty canvas, as wide as it comes; what is seen of it becomes `web/docs/<Id>.jpg`.
"""

import io
import time

from PIL import Image
from playwright.sync_api import Page

from tools.page import comfy_page
from tools.refresh.help_tables import page_path
from tools.refresh.made import our_nodes

PLACE, EDGE, TITLE = 120, 10, 30  # pixels: where the node stands, what is seen around it, the height of its title
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
    with comfy_page(1200, 1350) as (server, page):
        for node in our_nodes(server.get("/object_info")):
            picture(page, node).save(page_path(node).with_suffix(".jpg"), quality=82, optimize=True)


if __name__ == "__main__":
    main()
