"""The shipped workflows: each is accepted by a real server as it is, and those with parts of their own run, with few steps."""

import json
import time
import urllib.request
from typing import Any

import pytest
from comfy_client import queue
from comfy_server import PACK_ROOT, Server
from graphs import EXAMPLES, Prompt, change, load_workflow, picture
from workflow import to_prompt

from tools.workflows.examples import EXAMPLES as DESCRIBED

PATIENCE_SECONDS = 60


def post(server: Server, path: str, body: Any) -> Any:
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def stop_everything(server: Server) -> None:
    """Take what waits out of the queue, interrupt what runs, and wait until it is over."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        post(server, "/queue", {"clear": True})
        post(server, "/interrupt", {})
        if not server.get("/queue")["queue_running"]:
            return
        time.sleep(0.2)
    raise AssertionError("the queue did not become idle")


def short(prompt: Prompt) -> Prompt:
    """One step, no pictures of the run, two steps of the sampler."""
    prompt = change(prompt, "TrainLoRA", max_train_steps=1)
    prompt = change(prompt, "ValidationConfig", validation_prompts="", num_validation_images=0)
    prompt = change(prompt, "BasicScheduler", steps=2)
    return change(prompt, "EmptySD3LatentImage", batch_size=1)


def test_every_description_is_shipped_and_nothing_else() -> None:
    assert {path.stem for path in EXAMPLES} == {described.name for described in DESCRIBED}
    assert {path.stem for path in (PACK_ROOT / "example_workflows").glob("*.jpg")} == {path.stem for path in EXAMPLES}


def test_every_shipped_workflow_is_accepted_as_it_is(server: Server) -> None:
    info = server.get("/object_info")
    try:
        for path in EXAMPLES:
            workflow = load_workflow(path)
            assert post(server, "/prompt", {"prompt": to_prompt(workflow, info)})["node_errors"] == {}, path.stem
            assert any(node["type"] == "MarkdownNote" for node in workflow["nodes"]), path.stem
    finally:
        stop_everything(server)


@pytest.mark.parametrize(
    ("name", "pictures"),
    [("Guidance 1 and guidance 3.5", 2), pytest.param("Small card, low memory", 1, marks=pytest.mark.slow)],
)
def test_a_shipped_workflow_runs_to_its_pictures(server: Server, name: str, pictures: int) -> None:
    path = PACK_ROOT / "example_workflows" / f"{name}.json"
    prompt = short(to_prompt(load_workflow(path), server.get("/object_info")))
    outcome = queue(server.url, prompt)
    assert outcome.status == "success", outcome.error
    saved = [node for node, one in prompt.items() if one["class_type"] == "SaveImage"]
    assert len(saved) == pictures
    for node in saved:
        assert picture(server.output_dir, outcome.outputs[node]["images"][0]).size == (64, 64)
