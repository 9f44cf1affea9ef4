"""ComfyUI's page as a user has it before them: opened, a workflow on the canvas, a node in front, errors of our files noted."""

import base64
import json
import os
import re
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfy_server import PACK_NAME, Server
from graphs import EXAMPLE, load_workflow

PATIENCE = 300_000  # ms; a busy machine is twenty times slower
STEPS = 200  # enough to press Stop before the last, however slow the page beside the training
SIZE = {"width": 1500, "height": 1000}
SHORT = {
    "TrainLoRA": {"name": "scenario", "max_train_steps": STEPS},
    "ValidationConfig": {"validation_prompts": "airplane\nautomobile", "validation_num_inference_steps": 2},
    "TrainingOptions": {"train_batch_size": 4},
    "BasicScheduler": {"steps": 2},
    "EmptySD3LatentImage": {"batch_size": 1},
}

CHANGE = """changes => {
  for (const [type, values] of Object.entries(changes)) {
    for (const node of app.graph.nodes.filter(node => node.type === type)) {
      for (const [name, value] of Object.entries(values)) {
        const widget = node.widgets.find(widget => widget.name === name);
        widget.value = value;
        widget.callback?.(value);
      }
    }
  }
}"""
CENTER = """type => {
  const node = app.graph.nodes.findLast(node => node.type === type);
  app.canvas.ds.scale = 0.9;
  app.canvas.ds.offset = [560 - node.pos[0], 110 - node.pos[1]];
  app.canvas.setDirty(true, true);
}"""

MIDDLE = """type => {
  const node = app.graph.nodes.findLast(node => node.type === type);
  const box = app.canvas.canvas.getBoundingClientRect();
  const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] - 12]);
  return [box.x + x, box.y + y];
}"""  # on its title, where no widget is
WIDGET = """([type, label]) => {
  const node = app.graph.nodes.findLast(node => node.type === type);
  const widget = node.widgets.find(widget => widget.name === label);
  const box = app.canvas.canvas.getBoundingClientRect();
  const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10]);
  return [box.x + x, box.y + y];
}"""
DROP = """async ([x, y, contents]) => {
  const transfer = new DataTransfer();
  for (const [name, text] of contents) {
    transfer.items.add(new File([Uint8Array.from(atob(text), letter => letter.charCodeAt(0))], name));
  }
  for (const kind of ['dragenter', 'dragover', 'drop']) {
    const event = new DragEvent(kind, {dataTransfer: transfer, clientX: x, clientY: y, bubbles: true, cancelable: true});
    document.elementFromPoint(x, y).dispatchEvent(event);
  }
}"""


@dataclass
class Comfy:
    """A page of a server, with what went wrong in our files since it was opened."""

    page: Any
    errors: list[str] = field(default_factory=list)

    @property
    def monitor(self) -> Any:
        """The node that has a curve, where there are several."""
        return self.page.locator(".fls-node", has=self.page.locator(".fls-dots")).first

    def load_example(self, **training: Any) -> None:
        """The example workflow, shortened, with TrainLoRA in front; `training` are values of its widgets."""
        self.page.evaluate(
            "async workflow => { await app.loadGraphData(workflow, true, true, 'example') }", load_workflow(EXAMPLE)
        )
        self.shorten(**training)

    def open_template(self, title: str, **training: Any) -> None:
        """The same with that workflow, out of the templates browser of the frontend that ComfyUI 0.3.64 ships."""
        self.page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.page.get_by_role("option", name=PACK_NAME).click()
        self.page.locator(".p-dialog").get_by_text(title, exact=True).first.click()
        self.page.wait_for_function("title => app.extensionManager.workflow.activeWorkflow?.filename === title", arg=title)
        self.shorten(**training)

    def shorten(self, **training: Any) -> None:
        self.page.evaluate(CHANGE, SHORT | {"TrainLoRA": SHORT["TrainLoRA"] | training})
        self.show("TrainLoRA")

    def set(self, node_type: str, **values: Any) -> None:
        """Change widgets of the nodes of that type."""
        self.page.evaluate(CHANGE, {node_type: values})

    def show(self, node_type: str) -> None:
        self.page.evaluate(CENTER, node_type)

    def has(self, node_type: str) -> bool:
        return self.page.evaluate("type => app.graph.nodes.some(node => node.type === type)", node_type)

    def run(self) -> None:
        """Press Run."""
        self.page.get_by_role("button", name="Run", exact=True).first.click()

    def dots(self) -> int:
        """How many points the chart in the node draws: one a step, until there are more of them than the chart is wide."""
        path = self.monitor.locator(".fls-dots").first
        return (path.get_attribute("d") or "").count("M") if path.count() else 0

    def step(self) -> int:
        """The last step of the chart in the node, as it says of itself."""
        label = self.monitor.locator(".fls-chart").first.get_attribute("aria-label")
        return int(re.search(r" up to step (\d+):", label)[1])

    def wait_for_step(self, more_than: int) -> int:
        script = "step => +document.querySelector('.fls-node .fls-chart')?.ariaLabel?.match(/ up to step (\\d+):/)?.[1] > step"
        self.page.wait_for_function(script, arg=more_than)
        return self.step()

    def wait_for_headline(self, text: str) -> None:
        self.monitor.locator(".fls-headline", has_text=text).wait_for()

    def property(self) -> str:
        """The run that the node remembers."""
        return self.page.evaluate("app.graph.nodes.find(node => node.type === 'TrainLoRA').properties.flux_lora_run ?? ''")

    def value(self, node_type: str, widget: str) -> Any:
        script = "([type, name]) => app.graph.nodes.find(node => node.type === type).widgets.find(w => w.name === name).value"
        return self.page.evaluate(script, [node_type, widget])

    def press(self, node_type: str, label: str) -> None:
        """Click a button of that node: an element in Nodes 2.0, and else a part of the canvas."""
        button = self.page.get_by_role("button", name=label)
        if button.count():
            button.click()
        else:
            self.page.mouse.click(*self.page.evaluate(WIDGET, [node_type, label]))

    def click(self, name: str) -> None:
        """Click a button of the monitor, and again where it went amiss: what appears above or below moves a button, and a busy
        machine takes long between the pointer's going down and its coming up."""
        button = self.monitor.get_by_role("button", name=name, exact=True).element_handle()
        button.evaluate("button => button.addEventListener('click', () => { button.dataset.isClicked = 'true' })")
        while button.evaluate("button => button.dataset.isClicked") is None:
            button.click()
        button.evaluate("button => { delete button.dataset.isClicked }")

    def drop(self, node_type: str, files: list[Path]) -> None:
        """Drop files from the desktop onto the node of that type, as the browser tells of it: over it first, then let go."""
        self.drop_at(self.page.evaluate(MIDDLE, node_type), files)

    def drop_at(self, place: list[float], files: list[Path]) -> None:
        """The same at this place of the window."""
        x, y = place
        contents = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in files]
        self.page.evaluate(DROP, [x, y, contents])

    def second_tab(self) -> "Comfy":
        """Another tab of the same browser, as a user opens one: it comes up with what was on the canvas."""
        return attend(self.page.context.new_page(), self.page.url)

    def shot(self, name: str) -> None:
        """A picture of the page, for people to look at, where FLUX_LORA_SHOTS names a folder for them."""
        if folder := os.environ.get("FLUX_LORA_SHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}.png")

    def reload(self) -> None:
        self.page.reload()
        wait_until_ready(self.page)


def open_page(browser: Any, server: Server, **settings: Any) -> Comfy:
    """A page of its own context, so nothing is left from another; settings such as `vue=True` are ComfyUI's."""
    body = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.WarnBlueprintOverwrite": False, **settings}
    request = urllib.request.Request(f"{server.url}/settings", json.dumps(body).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=30).close()
    return attend(browser.new_context(viewport=SIZE).new_page(), server.url)


def attend(page: Any, url: str) -> Comfy:
    """Open ComfyUI in a new page, and note from now on what goes wrong in it."""
    comfy = Comfy(page)
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: note(comfy, f"{error}\n{error.stack}"))
    page.on("console", lambda message: note(comfy, f"{message.text} {message.location}") if message.type == "error" else None)
    page.goto(url)
    wait_until_ready(page)
    return comfy


def wait_until_ready(page: Any) -> None:
    page.wait_for_function("() => window.app?.vueAppReady && window.app.graph")
    page.wait_for_function("() => app.graph.nodes !== undefined")


def note(comfy: Comfy, text: str) -> None:
    """Errors of ComfyUI itself are not ours."""
    if f"/extensions/{PACK_NAME}/" in text or "/flux_lora/" in text:
        comfy.errors.append(text)


def wait_until_gone(path: Path) -> None:
    """A folder that the page no longer lists is still being emptied."""
    deadline = time.monotonic() + PATIENCE / 1000
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not path.exists()
