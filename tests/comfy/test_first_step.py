"""From Run to the first step of the example as it ships: reading the pictures, the base's own pictures, and what is left of
loading the libraries. The bar is for two cores that do nothing else."""

import json
import os
import shutil
import time

import pytest
from comfy_client import Message, queue
from comfy_server import Server
from graphs import EXAMPLE, Prompt, change, load_workflow, only
from test_waiting import trainers, wait_until_ready
from workflow import to_prompt

MOST_SECONDS = 12.0
IDLE = 1.0  # processes that wanted a core in the last minute


@pytest.mark.slow
def test_the_first_step_comes_within_twelve_seconds_of_run(server: Server) -> None:
    """The page was open for a while, as when somebody looks at the graph: a trainer waits (`nodes/standby.py`). Without one,
    a script's run for instance or two in a row, the libraries are loaded first; that time is printed and has no bar."""
    prompt = change(to_prompt(load_workflow(EXAMPLE), server.get("/object_info")), "TrainLoRA", max_train_steps=400)
    is_idle = os.getloadavg()[0] < IDLE
    cold = seconds_to_first_step(server, prompt, "cold")
    wait_until_ready(server)
    (process,) = trainers(server)
    memory = process.memory_full_info()
    held = f"{memory.rss / 2**20:.0f} MiB resident, {memory.uss / 2**20:.0f} MiB of it its own alone"
    waited = seconds_to_first_step(server, prompt, "waited-for")
    told = f"first step {waited:.1f} s after Run with a trainer that waited ({held}), {cold:.1f} s with none"
    print(told)
    if not is_idle:
        pytest.skip(f"{told}, but other processes keep the cores busy: the bar is for an idle machine")
    assert waited <= MOST_SECONDS


def seconds_to_first_step(server: Server, prompt: Prompt, name: str) -> float:
    """Of a run of this name, which finds nothing encoded; it is cancelled then."""

    def training(message: Message) -> bool:
        return message["type"] == "progress" and message["data"]["max"] == 400

    shutil.rmtree(server.output_dir / "flux_lora" / "cache", ignore_errors=True)
    prompt = change(only(prompt, "TrainLoRA"), "TrainLoRA", name=name)
    began = time.time()
    queue(server.url, prompt, interrupt_when=training)
    lines = (next(server.runs_dir.glob(f"{name}-*")) / "events.jsonl").read_text(encoding="utf-8").splitlines()
    first = next(event for event in map(json.loads, lines) if event["event"] == "step")
    assert first["step"] == 1
    return first["time"] - began
