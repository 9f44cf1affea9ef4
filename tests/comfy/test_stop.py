"""Stop is save: Cancel in the middle, then the same graph again; and what becomes of the training when ComfyUI dies."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from comfy_client import Message, queue
from comfy_server import PACK_ROOT, Server
from graphs import Prompt, change, find, only

STEPS = 24
PATIENCE_SECONDS = 90

# The nodes' own way to start a child, without ComfyUI: the package around child.py is made up, its code is the real one.
PARENT = """
import sys, types
from pathlib import Path
root, job, home = sys.argv[1:]
for name, path in (("pack", root), ("pack.nodes", root + "/nodes")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from pack.nodes.child import train
from pack.trainer_core.job_file import load_job
train(load_job(Path(job)), Path(home), free_memory=lambda: None, on_event=lambda event: None, on_tick=lambda: None)
"""


def test_cancel_saves_and_the_same_graph_goes_on(server: Server, example: Prompt) -> None:
    prompt = change(only(example, "TrainLoRA"), "TrainLoRA", name="cancelled", max_train_steps=STEPS)
    prompt = change(prompt, "ValidationConfig", validation_prompts="", num_validation_images=0)
    prompt = change(prompt, "TrainingOptions", train_batch_size=1)

    def training(message: Message) -> bool:
        return message["type"] == "progress" and message["data"]["max"] == STEPS and message["data"]["value"] >= 3

    cancelled = queue(server.url, prompt, interrupt_when=training)
    assert cancelled.status == "interrupted"
    run_dir = next(server.runs_dir.glob("cancelled-*"))
    stopped = events_of(run_dir, "stopped")[0]["step"]
    assert 3 <= stopped < STEPS
    assert list((run_dir / "checkpoints").iterdir())
    assert not list(run_dir.glob("control*"))

    finished = queue(server.url, prompt)
    assert finished.status == "success", finished.error
    assert [event["resumed_from"] for event in events_of(run_dir, "started")] == [0, stopped]
    assert [event["step"] for event in events_of(run_dir, "step")] == list(range(1, STEPS + 1))
    assert (run_dir / "result.json").exists()


def test_two_trainings_in_one_graph_run_one_after_the_other_and_leave_no_process(server: Server, example: Prompt) -> None:
    prompt = change(only(example, "TrainLoRA"), "TrainLoRA", name="pair", max_train_steps=3)
    prompt = change(prompt, "ValidationConfig", validation_prompts="", num_validation_images=0)
    node_id = find(prompt, "TrainLoRA")
    shorter = prompt[node_id] | {"inputs": prompt[node_id]["inputs"] | {"max_train_steps": 2}}
    outcome = queue(server.url, prompt | {"shorter": shorter})
    assert outcome.status == "success", outcome.error
    runs = [path for path in server.runs_dir.iterdir() if path.name.startswith("pair-")]
    times = sorted((events_of(run, "started")[0]["time"], events_of(run, "done")[0]["time"], run.name) for run in runs)
    assert len(times) == 2 and times[0][1] <= times[1][0]
    first, second = (server.runs_dir / name for _, _, name in times)
    if first.name.endswith("-2"):  # and changing only the number of steps goes on
        assert events_of(second, "started")[0]["resumed_from"] == 2
        assert events_of(second, "job_changed")[0]["begins_from"] == {"run_id": first.name, "step": 2, "exact": True}
    names = [" ".join(process.cmdline()) for process in psutil.process_iter() if process.status() != psutil.STATUS_ZOMBIE]
    assert not [name for name in names if str(server.runs_dir) in name and "trainer_core" in name]
    assert not list(server.output_dir.rglob("*.tmp"))


def test_when_its_parent_is_killed_the_training_saves_and_ends(server: Server, example: Prompt, tmp_path: Path) -> None:
    cancelled = json.loads((next(server.runs_dir.glob("cancelled-*")) / "job.json").read_text(encoding="utf-8"))
    cancelled["name"] = "orphan"
    cancelled["training"]["max_train_steps"] = 100_000
    job = tmp_path / "job.json"
    job.write_text(json.dumps(cancelled), encoding="utf-8")
    home = server.output_dir / "flux_lora"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(PACK_ROOT), str(job), str(home)])
    wait_for(server, "step")
    parent.kill()
    parent.wait()
    stopped = wait_for(server, "stopped")
    checkpoints = next(server.runs_dir.glob("orphan-*")) / "checkpoints"
    assert [int(path.name.removeprefix("step-")) for path in checkpoints.iterdir()] == [stopped["step"]]


def wait_for(server: Server, kind: str) -> dict[str, Any]:
    """The first event of this kind of the run named orphan."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        for run_dir in server.runs_dir.glob("orphan-*"):
            if (run_dir / "events.jsonl").exists() and (found := events_of(run_dir, kind)):
                return found[0]
        time.sleep(0.1)
    raise AssertionError(f"no event {kind!r} within {PATIENCE_SECONDS} s")


def events_of(run_dir: Any, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]
