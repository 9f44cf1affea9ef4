"""The smaller helpers on the canvas: pictures dropped onto DatasetBucket, the prompt library as rows."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from comfy_server import PACK_ROOT, Server
from pages import Comfy, open_page

PICTURES = PACK_ROOT / "trainer_core" / "pico" / "demo" / "pictures"
DROP = """async ([type, files]) => {
  const node = app.graph.nodes.find(node => node.type === type);
  const transfer = new DataTransfer();
  for (const [name, url] of files) transfer.items.add(new File([await (await fetch(url)).blob()], name));
  const event = new DragEvent('drop', {dataTransfer: transfer});
  return [node.onDragOver(event), await node.onDragDrop(event)];
}"""


@pytest.fixture(scope="module")
def comfy(browser: Any, server: Server) -> Iterator[Comfy]:
    opened = open_page(browser, server)
    opened.load_example()
    yield opened
    opened.page.context.close()


def test_pictures_dropped_on_the_node_become_its_folder(comfy: Comfy, server: Server) -> None:
    import base64

    def as_url(path: Any) -> str:
        return "data:application/octet-stream;base64," + base64.b64encode(path.read_bytes()).decode()

    names = ("01_tiger_face.png", "01_tiger_face.txt", "02_sailboat.png")
    files = [[name, as_url(PICTURES / name)] for name in names]
    assert comfy.page.evaluate(DROP, ["DatasetBucket", files]) == [True, True]
    comfy.page.get_by_text("2 pictures in pictures").first.wait_for()
    folder = comfy.value("DatasetBucket", "folder")
    assert {path.name for path in (server.base_dir / "input" / folder).iterdir()} == set(names)


def test_the_prompt_library_is_edited_as_rows_and_kept_as_json(comfy: Comfy) -> None:
    page = comfy.page
    script = (
        "app.graph.nodes.find(node => node.type === 'ValidationConfig').widgets.find(w => w.name.startsWith('Edit')).callback()"
    )
    page.evaluate(script)
    editor = page.locator("dialog.fls-editor")
    editor.get_by_label("Nickname").fill("../up")
    assert editor.get_by_role("button", name="Keep").is_disabled()
    editor.get_by_label("Nickname").fill("walk")
    editor.get_by_label("Seed").fill("7")
    editor.get_by_label("Prompt", exact=True).fill("a dog in a park")
    editor.get_by_role("button", name="Add a prompt").click()
    page.keyboard.type("second")
    editor.get_by_label("Prompt", exact=True).nth(1).fill("a cat")
    editor.get_by_role("button", name="Remove prompt 2").click()
    editor.get_by_role("button", name="Keep").click()
    editor.wait_for(state="detached")
    kept = json.loads(comfy.value("ValidationConfig", "user_prompt_library"))
    assert kept == {"walk": {"prompt": "a dog in a park", "seed": 7}}
    assert comfy.errors == []


def test_our_buttons_and_monitor_are_not_saved_with_the_workflow(comfy: Comfy) -> None:
    script = """type => { const node = app.graph.nodes.find(node => node.type === type);
        return [node.serialize().widgets_values.length, node.widgets.filter(widget => widget.serialize !== false).length] }"""
    for node_type in ("TrainLoRA", "DatasetBucket", "ValidationConfig"):
        saved, widgets = comfy.page.evaluate(script, node_type)
        assert saved == widgets
