"""SIGKILL of a real ComfyUI, of the trainer that it has started, and of both, at random moments; then it is queued again.

ComfyUI that is killed leaves its trainer alone: that one saves and ends by itself, as its standard input has ended. Run by
`python -m tests.faults --comfy`, which sees to it that the helpers of tests/comfy are found.
"""

import contextlib
import json
import random
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import psutil
from comfy_client import queue
from comfy_server import HOW_TO_GET_ONE, Server, find_comfyui, find_python, start_server
from graphs import EXAMPLE, Prompt, change, load_workflow, only
from workflow import to_prompt

from trainer_core.run_dir import RunDir

from .harmed import leftovers
from .stages import Stage, Watch, stages_of

TRAINER, COMFYUI, BOTH = VICTIMS = ("trainer", "ComfyUI", "both")
PATIENCE_SECONDS = 60.0  # for a trainer that has lost its ComfyUI to save and end
LOOK_SECONDS = 0.2
STEPS = 12


class Queued(NamedTuple):
    """The run that a graph trains in this ComfyUI, in the words of `harmed.py`."""

    run_dir: RunDir
    out: Path


@dataclass
class Comfy:
    """A ComfyUI that is killed and started again, with the same folders."""

    server: Server

    def alive(self) -> Server:
        """The one that lives, with nothing left in its cache of node outputs."""
        if self.server.process.poll() is None:
            self.server.forget()
        else:
            self.server = start_again(self.server.base_dir)
        return self.server


def start_again(base: Path) -> Server:
    """The ComfyUI of that folder, with what it had."""
    comfyui = find_comfyui()
    assert comfyui is not None, HOW_TO_GET_ONE
    return start_server(comfyui, find_python(comfyui), base)


def graph(server: Server) -> Prompt:
    """A training in every phase that is over in seconds."""
    prompt = only(to_prompt(load_workflow(EXAMPLE), server.get("/object_info")), "TrainLoRA")
    prompt = change(prompt, "TrainLoRA", name="killed", max_train_steps=STEPS)
    prompt = change(prompt, "LoadFluxForTraining", mixed_precision="no")
    prompt = change(prompt, "TrainingOptions", train_batch_size=1, checkpoint_step_interval=2)
    return change(prompt, "ValidationConfig", num_validation_images=1, validation_num_inference_steps=2, validation_prompts="")


def kill_many(base: Path, kills: int, seed: int) -> dict[str, Any]:
    """So many kills; how the runs ended, held against that which was left alone."""
    began, comfyui = time.monotonic(), Comfy(start_again(base))
    try:
        report = kill_each(comfyui, kills, random.Random(seed))
    finally:
        comfyui.server.stop()
    is_kept = report["kills"] == report["resumed"] == report["byte_equal"] and not (report["orphans"] or report["problems"])
    return report | {"seconds": round(time.monotonic() - began, 1), "kept": is_kept}


def kill_each(comfyui: "Comfy", kills: int, dice: random.Random) -> dict[str, Any]:
    """One run after the other, each killed until it came to its end."""
    prompt, home = graph(comfyui.server), comfyui.server.output_dir / "flux_lora"
    assert queue(comfyui.server.url, prompt).status == "success", comfyui.server.log()[-3000:]
    run = Queued(RunDir(next((home / "runs").glob("killed-*"))), home)
    lora, stages = Path(run.run_dir.result()["lora"]).read_bytes(), stages_of(run)
    report: dict[str, Any] = {"kills": 0, "resumed": 0, "byte_equal": 0, "orphans": 0, "problems": [], "killed": []}
    unsettled = 0  # kills of a run that has not ended yet
    shutil.rmtree(home)
    while report["kills"] < kills or unsettled:
        victim = dice.choice(VICTIMS) if report["kills"] < kills else ""
        where = live(comfyui, prompt, run, victim, dice.choice(stages), dice)
        if where:
            report["kills"], unsettled = report["kills"] + 1, unsettled + 1
            report["killed"].append(f"{victim} in {where}")
            report["orphans"] += orphans(home)
        elif run.run_dir.result() is None:
            report["problems"].append(comfyui.server.log()[-3000:])
            break
        else:
            report["resumed"] += unsettled
            report["byte_equal"] += unsettled * (Path(run.run_dir.result()["lora"]).read_bytes() == lora)
            report["problems"] += leftovers(home)
            unsettled = 0
            shutil.rmtree(home)
    return report


def live(comfyui: "Comfy", prompt: Prompt, run: Queued, victim: str, stage: Stage, dice: random.Random) -> str:
    """Queue the graph in a ComfyUI that lives, and kill the victim in the stage; where the run was then, empty where it came to
    its end."""
    server = comfyui.alive()
    watch, asking = Watch(run), threading.Thread(target=ask, args=(server, prompt), daemon=True)
    asking.start()
    child = None
    if victim and watch.until(asking, stage.name):
        time.sleep(dice.uniform(0, stage.seconds))
        child = trainer_of(server)
    if child is None:
        asking.join()
        return ""
    if victim in (COMFYUI, BOTH):
        server.process.kill()
        server.process.wait()
    if victim in (TRAINER, BOTH):
        child.kill()
    asking.join(PATIENCE_SECONDS)
    wait_for(child)
    return watch.last()


def wait_for(child: psutil.Process) -> None:
    """Until it has ended: nobody may be there to ask how, then it stays as a zombie."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until and child.is_running():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                return
        time.sleep(LOOK_SECONDS)


def ask(server: Server, prompt: Prompt) -> None:
    """Queue the graph; that its ComfyUI dies meanwhile is the point."""
    try:
        queue(server.url, prompt)
    except (OSError, RuntimeError, ValueError, aiohttp.ClientError) as error:
        print(f"the queue broke off: {error}", file=sys.stderr)


def trainer_of(server: Server) -> psutil.Process | None:
    """The trainer that this ComfyUI has started, while there is one."""
    children = psutil.Process(server.process.pid).children()
    return next((child for child in children if "trainer_core" in " ".join(child.cmdline())), None)


def orphans(home: Path) -> int:
    """Trainers that still work there."""
    count = 0
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or ())
        count += str(home) in words and "trainer_core" in words and process.info["status"] != psutil.STATUS_ZOMBIE
    return count


if __name__ == "__main__":
    print(json.dumps(kill_many(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
