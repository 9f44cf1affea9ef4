"""Each template as a user meets it: chosen in the templates browser, run, stopped, gone on with, its pictures looked at.

With FLUX_LORA_SHOTS=FOLDER the page is pictured at each of these moments; `python -m tools.scenarios FOLDER` makes what
docs/scenarios.md shows from them.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from comfy_server import Server
from graphs import EXAMPLES
from pages import Comfy, open_page

FIRST = "Train a LoRA and test it"  # test_scenario.py goes through it, and further
STEPS = 150  # the page of a busy machine is some steps behind the run that it is to stop
SHOWN = ["SaveImage", "PreviewImage"]
NUM_SHOWN = """kinds => app.graph.nodes.filter(node => kinds.includes(node.type))
    .filter(node => app.nodeOutputs[node.id]?.images?.length).length"""


@pytest.fixture
def comfy(browser: Any, server: Server) -> Iterator[Comfy]:
    opened = open_page(browser, server, **{"Comfy.VueNodes.Enabled": False})
    yield opened
    opened.page.context.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({path.stem for path in EXAMPLES} - {FIRST}))
def test_a_template_runs_stops_goes_on_and_shows_its_pictures(comfy: Comfy, server: Server, name: str) -> None:
    comfy.open_template(name, name=re.sub(r"[^a-z0-9]+", "-", name.lower()), max_train_steps=STEPS)
    comfy.run()
    comfy.wait_for_step(0)
    comfy.shot(f"{name}, 1 training")
    comfy.click("Stop and save")
    comfy.wait_for_headline("Stopped")
    assert 0 < (stopped := comfy.dots()) < STEPS
    comfy.shot(f"{name}, 2 stopped")
    comfy.click("Go on")
    assert comfy.wait_for_step(stopped) > stopped
    comfy.wait_for_headline("Finished")
    comfy.shot(f"{name}, 3 finished")
    pictured = comfy.page.evaluate("kinds => app.graph.nodes.filter(node => kinds.includes(node.type)).length", SHOWN)
    comfy.page.wait_for_function(f"([kinds, count]) => ({NUM_SHOWN})(kinds) === count", arg=[SHOWN, pictured])
    comfy.show("SaveImage" if comfy.has("SaveImage") else "PreviewImage")
    comfy.page.wait_for_timeout(1000)  # the picture is fetched and drawn
    comfy.shot(f"{name}, 4 pictures")
    assert comfy.errors == []
