"""Several processes against one, on the CPU: python -m benchmarks.scale [--steps N] [--job everything] [--json]

A job on pico in float32, four samples a step, trained by one process, by two and four that the run starts itself
(`num_devices`), by two from `accelerate launch`, by two with the base shared out (FSDP2), and where the package deepspeed is
installed by two with a configuration for its ZeRO 2 and 3. The job is `plain` (one batch of four), or has `everything` that
could notice who computes what: masks, a TREAD route, regularisation, dropout, accumulation, a running average and a held-out
loss. `difference` is the largest between the weights of the LoRA, or of its average, and those of one process; bar: 1e-6.
`moved`: four processes until a third of the steps, two until two thirds, one to the end. `killed`: one of two is killed in the
middle; the run says so, what all had done is saved, and one process goes on to the end.

The seconds say nothing of scaling: the processes share the cores of one machine.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from trainer_core.commands import STOP
from trainer_core.events import EventReader
from trainer_core.job_file import parse_job
from trainer_core.run_dir import RunDir, run_dir_for
from trainer_core.saved import list_steps

BAR = 1e-6
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--dynamo_backend", "no"]
ACCELERATE += ["--mixed_precision", "no", "--main_process_port", "0"]
SHARDED = ["--use_fsdp", "--fsdp_version", "2"]


def make_data(folder: Path) -> None:
    """Pictures to train on, each with a mask, and others for regularisation."""
    for name, count in (("balls", 9), ("others", 3)):
        (folder / name).mkdir()
        for number in range(count):
            image = Image.new("RGB", ((96, 96), (120, 80), (80, 120))[number % 3], "white")
            ImageDraw.Draw(image).ellipse((10, 10, 60, 60), fill=(28 * number, 100, 255 - 28 * number))
            image.save(folder / name / f"{number}.png")
            (folder / name / f"{number}.txt").write_text(f"a ball {number}", encoding="utf-8")
    (folder / "masks").mkdir()
    for path in (folder / "balls").glob("*.png"):
        mask = Image.new("L", Image.open(path).size)
        ImageDraw.Draw(mask).rectangle((0, 0, 10 + 7 * int(path.stem), 200), fill=255)
        mask.save(folder / "masks" / path.name)


def job_data(folder: Path, kind: str, steps: int, processes: int) -> dict[str, Any]:
    training = {"max_train_steps": steps, "checkpoint_step_interval": 0, "device": "cpu", "num_devices": processes}
    data = {
        "name": "scale",
        "base": {"mixed_precision": "no"},
        "datasets": [{"id": "balls", "instance_data_dir": str(folder / "balls")}],
        "lora": {"lora_rank": 4, "lora_save_precision": "fp32"},
        "optimizer": {"learning_rate": 1e-4},
        "validation": {"num_validation_images": 2, "validation_num_inference_steps": 2},
        "training": training | {"train_batch_size": 4},
    }
    if kind == "everything":
        data["datasets"][0]["mask_data_dir"] = str(folder / "masks")
        others = {"id": "others", "instance_data_dir": str(folder / "others"), "is_regularisation_data": True}
        data["datasets"].append(others)
        data["lora"]["lora_dropout"] = 0.1
        data["flow"] = {"caption_dropout_probability": 0.3}
        data["routes"] = [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -2}]
        data["validation"] |= {"eval_steps_interval": 20, "num_held_out": 1, "eval_timesteps": 2}
        data["training"] |= {"train_batch_size": 2, "gradient_accumulation_steps": 2, "use_ema": True}
    return data


class Runs:
    """Runs of the same job below one folder, each in an output folder of its own."""

    def __init__(self, folder: Path, kind: str, steps: int):
        self.folder, self.kind, self.steps = folder, kind, steps
        make_data(folder)

    def job(self, processes: int) -> dict[str, Any]:
        return job_data(self.folder, self.kind, self.steps, processes)

    def run_dir(self, name: str) -> RunDir:
        return run_dir_for(parse_job(self.job(1)), self.folder / name)

    def start(self, name: str, processes: int, launcher: list[str] | None = None) -> "subprocess.Popen[str]":
        path = self.folder / f"{name}-{processes}.json"
        path.write_text(json.dumps(self.job(1 if launcher else processes)))
        command = [*(launcher or [sys.executable]), "-m", "trainer_core", "run", str(path)]
        command += ["--out", str(self.folder / name), "--cache", str(self.folder / "cache")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def whole(self, name: str, processes: int, launcher: list[str] | None = None) -> dict[str, Any]:
        """Run to the end; the seconds of the training."""
        child = self.start(name, processes, launcher)
        said, _ = child.communicate()
        if child.returncode:
            sys.exit(f"{name} ended with {child.returncode}:\n{said[-3000:]}")
        result = json.loads(self.run_dir(name).result_path.read_text())
        return {"processes": processes, "train_seconds": result["train_seconds"]}

    def until(self, name: str, processes: int, step: int, deed: Callable[["subprocess.Popen[str]"], None]) -> dict[str, Any]:
        """Start, do something when the step is told of, and wait for the end; exit code, and where it stood."""
        child, events = self.start(name, processes), EventReader(self.run_dir(name).events_path, from_end=True)
        while child.poll() is None and not any(e["event"] == "step" and e["step"] >= step for e in events.new()):
            time.sleep(0.02)
        deed(child)
        child.communicate(timeout=300)
        return {"exit_code": child.returncode, "saved_steps": list_steps(self.run_dir(name))}

    def difference(self, name: str, other: str) -> float:
        """The largest between the weights of two runs' LoRAs and averages."""
        found = 0.0
        for path in self.run_dir(other).root.glob("*.safetensors"):
            one, two = load_file(self.run_dir(name).root / path.name), load_file(path)
            found = max(found, *((one[key] - two[key]).abs().max().item() for key in one))
        return found


def kill_helper(child: "subprocess.Popen[str]") -> None:
    for process in psutil.Process(child.pid).children():
        if any("spawn_main" in word for word in process.cmdline()):
            process.send_signal(signal.SIGKILL)


def measure(folder: Path, kind: str, steps: int) -> dict[str, Any]:
    """Each way of training, compared with one process."""
    runs = Runs(folder, kind, steps)
    ways = {
        "1 process": (1, None),
        "2 processes": (2, None),
        "4 processes": (4, None),
        "accelerate, 2": (2, [*ACCELERATE, "--multi_gpu", "--num_processes", "2"]),
        "accelerate FSDP, 2": (2, [*ACCELERATE, *SHARDED, "--num_processes", "2"]),
    }
    if importlib.util.find_spec("deepspeed"):  # its launcher wants it; we do not
        for stage in ("2", "3"):
            launcher = [*ACCELERATE, "--use_deepspeed", "--zero_stage", stage, "--num_processes", "2"]
            ways[f"accelerate ZeRO {stage}, 2"] = (2, launcher)
    rows: dict[str, Any] = {}
    for name, (processes, launcher) in ways.items():
        rows[name] = runs.whole(name, processes, launcher)
        rows[name]["difference"] = runs.difference(name, "1 process")
        print(name, rows[name], file=sys.stderr, flush=True)  # it takes minutes
    if kind == "everything":
        rows |= interrupted(runs, steps)
    met = all(row["difference"] <= BAR for row in rows.values())
    return {"job": kind, "steps": steps, "samples_per_step": 4, "cores": os.cpu_count(), "bar": BAR, "rows": rows, "met": met}


def interrupted(runs: Runs, steps: int) -> dict[str, Any]:
    """Runs that are stopped, or of which a process is killed, and that go on with other numbers of processes."""
    rows: dict[str, Any] = {}
    for processes, step in ((4, steps // 3), (2, 2 * steps // 3)):
        stopped = runs.until("moved", processes, step, lambda child: runs.run_dir("moved").ask(STOP))
    rows["moved"] = stopped | runs.whole("moved", 1) | {"difference": runs.difference("moved", "1 process")}
    rows["killed"] = runs.until("killed", 2, steps // 2, kill_helper)
    rows["killed"] |= runs.whole("killed", 1) | {"difference": runs.difference("killed", "1 process")}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--job", choices=("plain", "everything"), default="plain")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.job, args.steps)
    if args.json:
        print(json.dumps(found))
        return
    for name, row in found["rows"].items():
        ended = f"   exit code {row['exit_code']}, saved {row['saved_steps']}" if "exit_code" in row else ""
        print(f"{name:<20} {row['train_seconds']:7.1f} s   largest difference {row['difference']:.2e}{ended}")


if __name__ == "__main__":
    main()
