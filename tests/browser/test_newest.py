"""The newest frontend, with Nodes 2.0 and without: a finished run is found when queued again, and drawn from its events."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from comfy_client import queue
from comfy_server import Server
from graphs import EXAMPLE, change, load_workflow, only
from pages import SHORT, open_page
from workflow import to_prompt

FEW = 6


@pytest.fixture(scope="module")
def run_id(newest: Server) -> str:
    """A short run of the example, queued without a page."""
    prompt = to_prompt(load_workflow(EXAMPLE), newest.get("/object_info"))
    for node_type, values in SHORT.items():
        prompt = change(prompt, node_type, **values)
    prompt = change(prompt, "TrainLoRA", max_train_steps=FEW)
    with ThreadPoolExecutor() as aside:  # playwright has the event loop of this thread
        outcome = aside.submit(queue, newest.url, only(prompt, "TrainLoRA")).result()
    assert outcome.status == "success", outcome.error
    return next(newest.runs_dir.glob("scenario-*")).name


@pytest.mark.parametrize("has_vue_nodes", [True, False], ids=["nodes 2.0", "canvas"])
def test_a_finished_run_is_found_and_drawn_from_its_events(
    browser: Any, newest: Server, run_id: str, has_vue_nodes: bool
) -> None:
    comfy = open_page(browser, newest, **{"Comfy.VueNodes.Enabled": has_vue_nodes})
    comfy.load_example(max_train_steps=FEW)
    assert comfy.property() == ""
    comfy.run()
    comfy.wait_for_headline("Finished")
    assert comfy.property() == run_id
    assert comfy.wait_for_step(FEW - 1) == comfy.dots() == FEW
    comfy.shot(f"newest_{'vue' if has_vue_nodes else 'canvas'}")
    comfy.monitor.get_by_role("button", name="Gradient").click()
    assert comfy.monitor.locator(".fls-legend").inner_text().startswith("norm")
    comfy.monitor.locator(".fls-card").first.click()
    comfy.page.keyboard.press("Escape")
    comfy.page.get_by_role("button", name="LoRA runs").click()
    assert "Finished" in comfy.page.locator(".fls-runs li").first.inner_text()
    assert comfy.errors == []
    comfy.page.context.close()
