"""What a user does with the example on pico: run, watch, stop, reload, go on, look at the pictures, find the run again."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_server import Server
from graphs import EXAMPLE
from pages import PATIENCE, STEPS, Comfy, open_page, wait_until_gone
from test_waiting import trainers

GUIDER_TEXT = """() => app.graph.nodes.find(node => node.type === 'AdaptiveGuider')
    .widgets.find(widget => widget.name === 'guidance_report')?.element.textContent"""
CLASSIC = {"Comfy.VueNodes.Enabled": False}


@pytest.fixture(scope="module")
def comfy(browser: Any, server: Server) -> Iterator[Comfy]:
    """The page that the tests below go through, one after the other."""
    opened = open_page(browser, server, **CLASSIC)
    opened.open_template(EXAMPLE.stem)
    opened.set("DatasetBucket", trigger_word="ohwx")
    yield opened
    opened.page.context.close()


@pytest.fixture(scope="module")
def waiting(comfy: Comfy, server: Server) -> int:
    """The process that waits since the graph is on the canvas."""
    return wait_for_one(server)


@pytest.fixture(scope="module")
def stopped(comfy: Comfy, server: Server, waiting: int) -> int:
    """The example run until its curve begins, then stopped by the button; the step it had."""
    comfy.page.evaluate("app.graph.add(LiteGraph.createNode('LoraLoaderModelOnly'))")
    comfy.run()
    comfy.wait_for_step(0)
    comfy.shot("training")
    comfy.click("Stop and save")
    comfy.wait_for_headline("Stopped")
    comfy.shot("stopped")
    return events_of(server, comfy.property(), "stopped")[0]["step"]


@pytest.fixture(scope="module")
def finished(comfy: Comfy, stopped: int) -> str:
    """The run, gone on with after the page was loaded anew; its id."""
    comfy.reload()
    comfy.show("TrainLoRA")
    comfy.wait_for_headline("Stopped")
    assert comfy.dots() == stopped
    comfy.click("Go on")
    assert comfy.wait_for_step(stopped) > stopped
    comfy.shot("goes_on")
    comfy.wait_for_headline("Finished")
    comfy.page.locator(".fls-notice").wait_for()
    comfy.shot("finished")
    return comfy.property()


def test_stop_by_the_button_saves_and_shows_no_error(comfy: Comfy, server: Server, stopped: int) -> None:
    assert 0 < stopped < STEPS
    run_dir = server.runs_dir / comfy.property()
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [f"step-{stopped:08d}"]
    assert f"Everything up to step {stopped} is saved" in comfy.monitor.inner_text()
    assert comfy.page.locator(".p-dialog").count() == 0


def test_a_trainer_waits_while_the_graph_is_looked_at_and_again_after_each_run(
    comfy: Comfy, server: Server, waiting: int, finished: str
) -> None:
    first, second = (event["pid"] for event in events_of(server, finished, "started"))
    assert first == waiting
    assert wait_for_one(server) not in (first, second)


def wait_for_one(server: Server) -> int:
    """The one trainer that there is."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not (found := trainers(server)) and time.monotonic() < deadline:
        time.sleep(0.1)
    (process,) = found
    return process.pid


def test_after_a_reload_the_node_knows_its_run_and_goes_on_at_its_step(server: Server, stopped: int, finished: str) -> None:
    assert [event["resumed_from"] for event in events_of(server, finished, "started")] == [0, stopped]
    assert [event["step"] for event in events_of(server, finished, "step")] == list(range(1, STEPS + 1))


def test_the_guider_says_what_it_did_and_its_words_are_not_saved(comfy: Comfy, finished: str) -> None:
    comfy.page.wait_for_function(GUIDER_TEXT)
    first, *steps = comfy.page.evaluate(GUIDER_TEXT).splitlines()
    assert re.fullmatch(r"CFG on in \d of 2 evaluations, \d of 4 predictions saved \(\d+%\)", first)
    assert [line.split("  sigma")[0] for line in steps] == ["step   1", "step   2"]
    saved = comfy.page.evaluate("app.graph.nodes.find(n => n.type === 'AdaptiveGuider').serialize().widgets_values")
    assert len(saved) == 5


def test_a_new_lora_is_announced_listed_and_leads_to_its_run(comfy: Comfy, finished: str) -> None:
    notice = comfy.page.locator(".fls-notice")
    notice.wait_for()
    assert f"{finished}.safetensors" in notice.inner_text()
    listed = "app.graph.nodes.find(node => node.type === 'LoraLoaderModelOnly').widgets[0].options.values"
    assert f"{finished}.safetensors" in comfy.page.evaluate(listed)
    notice.get_by_role("button", name="Show the run").click()
    comfy.page.locator(".fls-page").wait_for()
    assert "Finished" in comfy.page.locator(".fls-page .fls-headline").inner_text()
    comfy.shot("run_page")


def test_pictures_open_large_and_the_keyboard_goes_through_them(comfy: Comfy, finished: str) -> None:
    page = comfy.page
    card = page.locator(".fls-page .fls-card").first
    card.wait_for()
    page.wait_for_function("[...document.querySelectorAll('.fls-page .fls-card img')].every(image => image.naturalWidth > 0)")
    card.focus()
    page.keyboard.press("Enter")
    large = page.locator("dialog.fls-large")
    assert "airplane" in large.inner_text()
    page.keyboard.press("ArrowRight")
    assert "automobile" in large.inner_text()
    comfy.shot("large")
    page.keyboard.press("Escape")
    large.wait_for(state="detached")


def test_the_history_lists_compares_copies_and_deletes(comfy: Comfy, server: Server, finished: str) -> None:
    page = comfy.page
    page.get_by_role("button", name="Copy LoRA…").click()
    page.locator(".p-dialog input").fill("kept/scenario")
    page.keyboard.press("Enter")
    page.get_by_text("LoRA copied").first.wait_for()
    assert (server.output_dir / "loras" / "kept" / "scenario.safetensors").exists()
    page.get_by_role("button", name="Back to the runs").click()
    row = page.locator(".fls-runs li").first
    assert re.search(rf"scenario.*Finished.*{STEPS} / {STEPS}.*loss", row.inner_text(), re.DOTALL)
    row.get_by_role("checkbox").check()
    page.locator(".fls-list .fls-line").first.wait_for()
    comfy.shot("history")
    row.get_by_role("button").click()
    page.get_by_role("button", name="Delete…").click()
    page.locator(".p-dialog").get_by_role("button", name="Cancel").click()
    assert (server.runs_dir / finished).exists()
    page.get_by_role("button", name="Delete…").click()
    page.locator(".p-dialog").get_by_role("button", name="Delete").click()
    page.locator(".fls-list").wait_for()
    wait_until_gone(server.runs_dir / finished)
    row.wait_for(state="detached")


def test_nothing_overflows_and_nothing_of_ours_has_failed(comfy: Comfy, finished: str) -> None:
    wide = """() => [...document.querySelectorAll('.fls-node, .fls-sidebar')]
        .filter(element => element.scrollWidth > element.clientWidth + 1).map(element => element.className)"""
    assert comfy.page.evaluate(wide) == []
    assert comfy.errors == []


def test_comfyui_s_model_library_shows_title_trigger_picture_and_resolution(comfy: Comfy, finished: str) -> None:
    page = comfy.page
    page.evaluate("app.extensionManager.command.execute('Workspace.ToggleSidebarTab.model-library')")
    page.locator(".p-tree-node-content", has_text="loras").first.click()
    lora = page.locator(".p-tree-node-content", has=page.locator(".model-lib-node-container"))
    lora.first.wait_for()
    lora.first.hover()
    shown = page.locator(".model_preview")
    shown.wait_for()
    assert shown.locator(".model_preview_title").inner_text() == "scenario"
    assert shown.locator(".model_preview_trigger_phrase").inner_text().endswith("ohwx")
    assert "say ohwx, 64x64, " in shown.locator(".model_preview_usage_hint").inner_text()
    assert shown.locator(".model_preview_image img").evaluate("image => image.naturalWidth") == 256
    comfy.shot("model_library")


def events_of(server: Server, run_id: str, kind: str) -> list[dict[str, Any]]:
    path: Path = server.runs_dir / run_id / "events.jsonl"
    return [event for event in map(json.loads, path.read_text(encoding="utf-8").splitlines()) if event["event"] == kind]
