"""The page asks for a trainer that waits: the next run is trained by it, as by any other, and nothing is left of it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from comfy_client import queue
from comfy_server import PACK_ROOT, Server
from graphs import Prompt, change, only
from raw_http import request
from safetensors.torch import load_file
from test_stop import events_of

ROUTE = "/api/flux_lora/standby"
PATIENCE_SECONDS = 120

# The nodes' own way to have one wait, without ComfyUI, as in test_stop.py
PARENT = """
import sys, time, types
for name, path in (("pack", sys.argv[1]), ("pack.nodes", sys.argv[1] + "/nodes")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from pack.nodes.standby import STANDBY
while (state := STANDBY.prepare()) == "loading":
    time.sleep(0.1)
print(state, flush=True)
time.sleep(600)
"""


def ask(server: Server) -> str:
    answer = request(server.url, "POST", ROUTE, {})
    assert answer.status == 200, answer
    return answer.json["standby"]


def wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while ask(server) != "ready":
        assert time.monotonic() < deadline
        time.sleep(0.2)


def trainers(server: Server) -> list[psutil.Process]:
    """Those that wait, those that train, and any other that the nodes have started."""
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if any(word.startswith("trainer_core") for word in child.cmdline())]


@pytest.fixture
def settings(server: Server) -> Iterator[Path]:
    """The settings file of the server, as it was afterwards."""
    path = server.base_dir / "user" / "flux_lora_studio.json"
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


def test_there_is_none_where_the_owner_wants_none_or_other_pages_ask(server: Server, settings: Path) -> None:
    for text in ('{"standby": false}', '{"standby": "perhaps"}'):
        settings.write_text(text, encoding="utf-8")
        assert ask(server) == "none"
    settings.write_text("{}", encoding="utf-8")
    for body, headers, status in (
        ({}, {"Sec_Fetch_Site": "cross-site"}, 403),
        ({}, {"Origin": "http://evil.example"}, 403),
        (b"{}", {"Content_Type": "text/plain"}, 415),
        ({"more": 1}, {}, 400),
    ):
        assert request(server.url, "POST", ROUTE, body, **headers).status == status
    assert not trainers(server)


def test_the_run_is_trained_by_the_one_that_waited_as_by_any_other(server: Server, example: Prompt) -> None:
    """The second one: the first is killed before it is needed, so a fresh process trains."""
    prompt = change(only(example, "TrainLoRA"), "ValidationConfig", validation_prompts="", num_validation_images=0)
    kept, loras = set(server.output_dir.rglob("*")), {}
    for name in ("fresh", "waited"):
        assert ask(server) == "loading"
        [process] = trainers(server)
        if name == "fresh":
            process.kill()
        else:
            wait_until_ready(server)
            print(f"waiting, it holds {process.memory_info().rss / 2**20:.0f} MiB")
        outcome = queue(server.url, change(prompt, "TrainLoRA", name=name))
        assert outcome.status == "success", outcome.error
        [run] = server.runs_dir.glob(f"{name}-*")
        assert (events_of(run, "started")[0]["pid"] == process.pid) == (name == "waited")
        report = json.loads((run / "child.log").read_text(encoding="utf-8").splitlines()[-1])
        loras[name] = load_file(report["lora"])
        assert report["exit_code"] == 0 and not trainers(server)
    assert loras["waited"].keys() == loras["fresh"].keys()
    assert all(torch.equal(value, loras["fresh"][key]) for key, value in loras["waited"].items())
    names = {path.relative_to(server.output_dir).parts for path in set(server.output_dir.rglob("*")) - kept}
    assert {parts[:2] for parts in names} <= {("flux_lora", "runs"), ("flux_lora", "cache"), ("flux_lora",), ("loras",)} | {
        ("loras", path.name) for path in (server.output_dir / "loras").glob("*.safetensors")
    }


def test_when_its_parent_is_killed_it_leaves_without_a_word() -> None:
    command = [sys.executable, "-c", PARENT, str(PACK_ROOT)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert parent.stdout.readline() == b"ready\n"
    [child] = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    with parent.stdout as said:
        assert said.read() == b""
    gone, _ = psutil.wait_procs([child], PATIENCE_SECONDS)
    assert gone
