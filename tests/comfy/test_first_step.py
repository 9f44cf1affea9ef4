"""From Run to the first step of the example as it ships: what starting the child, reading the pictures, and the base's own
pictures take. The bar is for two cores that do nothing else."""

import json
import os
import time

import pytest
from comfy_client import Message, queue
from comfy_server import Server
from graphs import EXAMPLE, change, load_workflow, only
from workflow import to_prompt

MOST_SECONDS = 12.0
IDLE = 1.0  # processes that wanted a core in the last minute


@pytest.mark.slow
def test_the_first_step_comes_within_twelve_seconds_of_run(server: Server) -> None:
    prompt = change(to_prompt(load_workflow(EXAMPLE), server.get("/object_info")), "TrainLoRA", name="first-step")
    is_idle = os.getloadavg()[0] < IDLE

    def training(message: Message) -> bool:
        return message["type"] == "progress" and message["data"]["max"] == 400

    began = time.time()
    queue(server.url, only(prompt, "TrainLoRA"), interrupt_when=training)
    lines = (next(server.runs_dir.glob("first-step-*")) / "events.jsonl").read_text(encoding="utf-8").splitlines()
    first = next(event for event in map(json.loads, lines) if event["event"] == "step")
    seconds = first["time"] - began
    print(f"first step after {seconds:.1f} s")
    assert first["step"] == 1
    if not is_idle:
        pytest.skip(
            f"first step after {seconds:.1f} s, but other processes keep the cores busy: the bar is for an idle machine"
        )
    assert seconds <= MOST_SECONDS
