"""A run as two tabs see it: every button of the node and of the history, a server that goes away and comes back, a process that
is killed. One run, from the first press to the last; the tests go through it in their order.
"""

import json
import os
import re
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_server import PACK_ROOT, Server
from pages import Comfy, open_page, wait_until_gone
from test_scenario import events_of

PICTURES = PACK_ROOT / "trainer_core" / "pico" / "demo" / "pictures"
STEPS = 20_000  # it is not to come to its end, however fast the machine
PROMPT = "a red ball, seen by nobody"
READABLE = 4.5  # contrast of text, as WCAG 2.1 AA wants it
ACTIVE = "() => { const one = document.activeElement; return one.getAttribute('aria-label') ?? one.textContent; }"
REMEMBERS = """note => {
  const said = () => { note.dataset.said = note.textContent || note.dataset.said; };
  new MutationObserver(said).observe(note, {childList: true});
}"""  # the note says it for six seconds
CONTRASTS = """selector => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const paint = colour => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); };
  const light = () => [...canvas.getImageData(0, 0, 1, 1).data.slice(0, 3)].map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const ratio = element => {
    const parents = [];
    for (let one = element; one; one = one.parentElement) parents.unshift(one);
    paint('white');
    for (const one of parents) paint(getComputedStyle(one).backgroundColor);
    const back = light();
    paint(getComputedStyle(element)[element instanceof SVGElement ? 'fill' : 'color']);
    const [low, high] = [back, light()].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const hasText = element => [...element.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
  const seen = [...document.querySelectorAll(`${selector} *`)].filter(one => hasText(one) && one.checkVisibility());
  return seen.map(one => [one.getAttribute('class') || one.parentElement.getAttribute('class'), one.textContent, ratio(one)]);
}"""


@pytest.fixture(scope="module", params=["newest", pytest.param("server", marks=pytest.mark.slow)])
def comfyui(request: pytest.FixtureRequest) -> Server:
    """ComfyUI with the newest frontend, and Nodes 2.0; with the one that it ships, and its canvas."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def first(browser: Any, comfyui: Server) -> Iterator[Comfy]:
    """A tab with the example on its canvas."""
    has_vue_nodes = "--front-end-root" in comfyui.command
    opened = open_page(browser, comfyui, **{"Comfy.VueNodes.Enabled": has_vue_nodes})
    opened.load_example(name="pressed", max_train_steps=STEPS)
    yield opened
    opened.page.context.close()


@pytest.fixture(scope="module")
def second(first: Comfy) -> Comfy:
    """Another tab, opened while the run goes on in the first."""
    first.run()
    first.wait_for_step(0)
    opened = first.second_tab()
    opened.show("TrainLoRA")
    return opened


def test_a_zip_dropped_on_the_node_becomes_its_folder(first: Comfy, comfyui: Server, tmp_path: Path) -> None:
    names = ("01_tiger_face.png", "01_tiger_face.txt", "02_sailboat.png")
    with zipfile.ZipFile(tmp_path / "two pictures.zip", "w") as file:
        for name in names:
            file.write(PICTURES / name, name)
    was = first.value("DatasetBucket", "folder")
    first.show("DatasetBucket")
    first.drop("DatasetBucket", [tmp_path / "two pictures.zip"])
    first.page.get_by_text("2 pictures in two pictures").first.wait_for()
    assert first.value("DatasetBucket", "folder") == "two pictures"
    assert {path.name for path in (comfyui.base_dir / "input" / "two pictures").iterdir()} == set(names)
    first.set("DatasetBucket", folder=was)


def test_pictures_chosen_by_the_button_become_the_node_s_folder(first: Comfy, comfyui: Server) -> None:
    was = first.value("DatasetBucket", "folder")
    with first.page.expect_file_chooser() as chosen:
        first.press("DatasetBucket", "Upload pictures or a zip")
    chosen.value.set_files([PICTURES / "02_sailboat.png", PICTURES / "02_sailboat.txt"])
    first.page.get_by_text("1 picture in pictures").first.wait_for()
    folder = comfyui.base_dir / "input" / first.value("DatasetBucket", "folder")
    assert {path.name for path in folder.iterdir()} == {"02_sailboat.png", "02_sailboat.txt"}
    first.set("DatasetBucket", folder=was)
    first.show("TrainLoRA")


def test_a_second_tab_shows_the_same_run_as_it_goes_on(first: Comfy, second: Comfy) -> None:
    assert second.property() == first.property() != ""
    seen = second.wait_for_step(0)
    assert second.wait_for_step(seen) > seen
    assert first.wait_for_step(seen) > seen


def test_every_button_is_reached_by_the_tab_key_and_pause_pressed_by_enter(first: Comfy, second: Comfy) -> None:
    first.monitor.get_by_role("button", name="Loss", exact=True).focus()
    reached = []
    while "Events" not in reached and len(reached) < 20:
        first.page.keyboard.press("Tab")
        reached.append(first.page.evaluate(ACTIVE))
    wanted = ["Learning rate", "Gradient", "Pause", "Save now", "Stop and save", "Prompt to picture", "Picture it"]
    assert reached[: len(wanted)] == wanted
    assert sum("airplane" in one or "automobile" in one for one in reached) == 2  # the pictures
    first.monitor.get_by_role("button", name="Pause").focus()
    first.page.keyboard.press("Enter")
    for tab in (first, second):
        tab.wait_for_headline("Paused")
        assert "Everything is saved. Continue, or stop and go on another day." in tab.monitor.inner_text()
    first.shot("paused")


def test_a_typed_prompt_is_pictured_while_the_run_waits(first: Comfy, second: Comfy, comfyui: Server) -> None:
    before = first.page.evaluate("app.graph.nodes.length")
    first.monitor.get_by_label("Prompt to picture").click()
    first.page.keyboard.type(PROMPT)  # its letters are shortcuts of the canvas
    first.page.keyboard.press("Enter")
    for tab in (first, second):
        card = tab.monitor.locator(".fls-card", has_text=PROMPT)
        card.wait_for()
        card.locator("img").evaluate("image => image.decode()")
    assert first.page.evaluate("app.graph.nodes.length") == before
    assert not any(one.is_visible() for one in first.page.get_by_alt_text("Live sampling preview").all())  # the card shows it
    [made] = [event for event in events_of(comfyui, first.property(), "sample") if event["prompt"] == PROMPT]
    assert made["index"] is None and made["step"] == events_of(comfyui, first.property(), "paused")[-1]["step"]
    first.shot("pictured")


def test_what_waits_in_one_tab_is_gone_on_with_from_the_other(first: Comfy, second: Comfy, comfyui: Server) -> None:
    paused = second.step()
    second.click("Continue")
    assert first.wait_for_step(paused) > paused
    for tab in (first, second):
        tab.wait_for_headline("Training")
    steps = [event["step"] for event in events_of(comfyui, first.property(), "step")]
    assert steps == list(range(1, len(steps) + 1))


def test_save_now_makes_a_checkpoint_that_the_log_tells_of(first: Comfy, comfyui: Server) -> None:
    known = {event["step"] for event in events_of(comfyui, first.property(), "checkpoint")}
    first.monitor.locator("summary").focus()
    first.page.keyboard.press("Enter")
    first.monitor.locator(".fls-note").evaluate(REMEMBERS)
    first.click("Save now")
    first.monitor.locator(".fls-note[data-said='Asked to save after this step.']").wait_for(state="attached")
    told = re.compile(rf"step (?!({'|'.join(map(str, known))}):)\d+: saved")
    line = first.monitor.locator(".fls-lines li", has_text=told).first
    line.wait_for()
    step = int(re.search(r"step (\d+)", line.inner_text())[1])
    assert (comfyui.runs_dir / first.property() / "checkpoints" / f"step-{step:08d}").is_dir()


def test_when_the_server_goes_away_both_tabs_say_so_and_then_how_the_run_stands(
    first: Comfy, second: Comfy, comfyui: Server
) -> None:
    comfyui.stop()
    for tab in (first, second):
        tab.wait_for_headline("No answer")
        assert "ComfyUI does not answer. If it ended, the training saves what it has" in tab.monitor.inner_text()
    first.shot("no answer")
    comfyui.start()
    for tab in (first, second):
        tab.wait_for_headline("Stopped")
        step = events_of(comfyui, first.property(), "stopped")[-1]["step"]
        assert f"Everything up to step {step} is saved; it goes on from there." in tab.monitor.inner_text()
        assert tab.wait_for_step(step - 1) == step
        tab.errors[:] = [error for error in tab.errors if "net::ERR_" not in error]  # nobody was there
    first.shot("after the restart")


def test_the_history_compares_several_runs(second: Comfy, comfyui: Server) -> None:
    run, other = comfyui.runs_dir / second.property(), comfyui.runs_dir / "other-1"
    other.mkdir()
    job = json.loads((run / "job.json").read_text(encoding="utf-8")) | {"name": "other"}
    (other / "job.json").write_text(json.dumps(job), encoding="utf-8")
    (other / "events.jsonl").write_bytes((run / "events.jsonl").read_bytes())
    page = second.page
    page.get_by_role("button", name="LoRA runs").click()
    for name in ("pressed", "other"):
        page.get_by_label(f"Compare {name}").check()
    page.wait_for_function("document.querySelectorAll('.fls-list .fls-line').length === 2")
    colours = page.locator(".fls-list .fls-line").evaluate_all("lines => lines.map(line => line.style.stroke)")
    boxes = [page.get_by_label(f"Compare {name}").evaluate("box => box.style.accentColor") for name in ("pressed", "other")]
    assert len(set(colours)) == 2 and boxes == colours
    assert {name for name in ("pressed", "other") if name in page.locator(".fls-list .fls-legend").inner_text()} == {
        "pressed",
        "other",
    }
    second.shot("compared")
    page.get_by_label("Compare pressed").uncheck()
    page.wait_for_function("document.querySelectorAll('.fls-list .fls-line').length === 1")


def test_a_run_is_deleted_after_a_question_and_no_longer_compared(second: Comfy, comfyui: Server) -> None:
    page = second.page
    page.locator(".fls-runs li", has_text="other").locator(".fls-run").click()
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert (comfyui.runs_dir / "other-1").exists()
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.locator(".fls-runs li", has_text="other").wait_for(state="detached")
    wait_until_gone(comfyui.runs_dir / "other-1")
    assert page.locator(".fls-list .fls-line").count() == 0


def test_a_checkpoint_s_lora_is_copied_from_the_history(second: Comfy, comfyui: Server) -> None:
    page = second.page
    page.locator(".fls-runs li", has_text="pressed").locator(".fls-run").click()
    kept = sorted((comfyui.runs_dir / second.property() / "checkpoints").iterdir())
    offered = page.get_by_label("Which LoRA").locator("option")
    offered.nth(len(kept) - 1).wait_for(state="attached")
    assert [f"step-{int(value):08d}" for value in offered.evaluate_all("all => all.map(one => one.value)")] == [
        path.name for path in reversed(kept)
    ]
    earliest = int(kept[0].name.removeprefix("step-"))
    page.get_by_label("Which LoRA").select_option(str(earliest))
    page.get_by_role("button", name="Copy LoRA…").click()
    page.get_by_role("dialog").get_by_role("textbox").fill("kept/earliest")
    page.keyboard.press("Enter")
    page.get_by_text("LoRA copied").first.wait_for()
    [lora] = (kept[0] / "lora").glob("*.safetensors")
    assert (comfyui.output_dir / "loras" / "kept" / "earliest.safetensors").read_bytes() == lora.read_bytes()


@pytest.mark.parametrize("palette", ["light", "dark"])
def test_all_text_is_readable(first: Comfy, second: Comfy, palette: str) -> None:
    for tab, selector in ((first, ".fls-node"), (second, ".fls-sidebar")):
        tab.page.evaluate("name => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        tab.page.wait_for_timeout(500)
        tab.shot(f"{palette} {selector}")
        found = tab.page.evaluate(CONTRASTS, selector)
        assert len(found) > 8
        assert [entry for entry in found if entry[2] < READABLE] == []


def test_the_workflow_of_a_run_opens_and_the_run_goes_on_from_the_history(first: Comfy, second: Comfy, comfyui: Server) -> None:
    page, run_id = second.page, second.property()
    page.evaluate("app.graph.clear()")
    page.get_by_role("button", name="Open workflow").click()
    page.wait_for_function("id => app.extensionManager.workflow.activeWorkflow?.filename === id", arg=run_id)
    assert second.property() == run_id and second.value("TrainLoRA", "max_train_steps") == STEPS
    stopped = events_of(comfyui, run_id, "stopped")[-1]["step"]
    page.locator(".fls-page").get_by_role("button", name="Go on").click()
    assert first.wait_for_step(stopped) > stopped
    assert [event["resumed_from"] for event in events_of(comfyui, run_id, "started")] == [0, stopped]


def test_a_killed_process_is_diagnosed_on_the_node_and_comfyui_stays_up(first: Comfy, comfyui: Server) -> None:
    os.kill(events_of(comfyui, first.property(), "started")[-1]["pid"], signal.SIGKILL)
    first.wait_for_headline("Interrupted")
    first.monitor.locator(".fls-why", has_text="the system or somebody killed the process").wait_for()
    assert re.search(r"it goes on from step \d+", first.monitor.inner_text())
    assert first.monitor.get_by_role("button", name="Go on").is_visible()
    first.shot("killed")
    assert comfyui.get("/system_stats")["devices"]


def test_a_trained_lora_dropped_on_the_canvas_brings_its_workflow_back(first: Comfy, second: Comfy, comfyui: Server) -> None:
    second.page.evaluate("app.graph.clear()")
    second.drop_at([900, 500], [comfyui.output_dir / "loras" / "kept" / "earliest.safetensors"])
    second.page.wait_for_function("app.graph.nodes.some(node => node.type === 'TrainLoRA')")
    assert second.value("TrainLoRA", "name") == "pressed"
    assert second.page.evaluate("app.graph.nodes.length") == first.page.evaluate("app.graph.nodes.length")


def test_nothing_of_ours_has_failed(first: Comfy, second: Comfy) -> None:
    assert first.errors == second.errors == []
