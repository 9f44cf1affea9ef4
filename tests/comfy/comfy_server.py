"""A real ComfyUI for the tests: found on this machine, started as its own process with its own folders, and ended again."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACK_ROOT = Path(__file__).parents[2]
PACK_NAME = "flux-lora-studio"
START_SECONDS = 180
NEEDED = ("diffusers", "peft", "accelerate", "matplotlib")
HOW_TO_GET_ONE = (
    "no ComfyUI found: git clone https://github.com/comfyanonymous/ComfyUI ~/ComfyUI, make ~/ComfyUI/.venv, install its "
    "requirements.txt and this pack's, or set COMFYUI_PATH (and COMFYUI_PYTHON) to one that you have"
)


def find_comfyui() -> Path | None:
    """The folder of a ComfyUI: COMFYUI_PATH, the one whose custom_nodes this pack lies in, or a usual place at home."""
    named = os.environ.get("COMFYUI_PATH")
    places = [Path(named)] if named else []
    places += [folder.parent for folder in PACK_ROOT.parents if folder.name == "custom_nodes"]
    places += [Path.home() / "ComfyUI", Path.home() / "comfy" / "ComfyUI"]
    return next((place for place in places if (place / "main.py").is_file() and (place / "comfy").is_dir()), None)


def find_python(comfyui: Path) -> Path:
    """ComfyUI's interpreter: COMFYUI_PYTHON, the .venv in its folder, or the current one."""
    named = os.environ.get("COMFYUI_PYTHON")
    inside = [comfyui / ".venv" / "bin" / "python", comfyui / ".venv" / "Scripts" / "python.exe"]
    places = [Path(named)] if named else [place for place in inside if place.exists()]
    return places[0] if places else Path(sys.executable)


def missing_packages(python: Path) -> list[str]:
    """Which of the pack's own requirements this interpreter lacks; nothing is imported."""
    code = f"import importlib.util; print([name for name in {NEEDED!r} if not importlib.util.find_spec(name)])"
    shown = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    return json.loads(shown.replace("'", '"'))


@dataclass
class Server:
    """A running ComfyUI: where it answers, where it keeps its files, what it has said, and how it was started."""

    url: str
    base_dir: Path
    log_path: Path
    comfyui: Path
    command: list[str]
    process: "subprocess.Popen[bytes]" = field(init=False)

    @property
    def output_dir(self) -> Path:
        return self.base_dir / "output"

    @property
    def runs_dir(self) -> Path:
        return self.output_dir / "flux_lora" / "runs"

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def forget(self) -> None:
        """Drop the cached outputs of all nodes. ComfyUI does it in its own time, so wait until its queue is idle again."""
        body = json.dumps({"unload_models": False, "free_memory": True}).encode()
        request = urllib.request.Request(self.url + "/free", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=30).close()
        time.sleep(0.5)

    def start(self) -> None:
        """Start it, again after `stop`; returns once it answers."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.comfyui, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"ComfyUI did not start; its log:\n{self.log()[-5000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_server(comfyui: Path, python: Path, base_dir: Path, *flags: str, pack: Path | None = PACK_ROOT) -> Server:
    """Start ComfyUI on the CPU with this pack as its only custom node, and with more flags; returns once it answers. `pack` is
    another copy of it, or None for none."""
    for name in ("custom_nodes", "models", "input", "output", "user"):
        (base_dir / name).mkdir(parents=True, exist_ok=True)  # a ComfyUI may have lived here before
    if pack is not None and not (base_dir / "custom_nodes" / PACK_NAME).exists():
        (base_dir / "custom_nodes" / PACK_NAME).symlink_to(pack, target_is_directory=True)
    allowed = {"read_folders": [tempfile.gettempdir()]}  # what the tests make for themselves
    (base_dir / "user" / "flux_lora_studio.json").write_text(json.dumps(allowed), encoding="utf-8")
    port = _free_port()
    command = [python, "main.py", "--cpu", "--port", str(port), "--base-directory", base_dir]
    command += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch", "--disable-api-nodes", *flags]
    log_path = base_dir / "server.log"
    log_path.write_bytes(b"")
    server = Server(f"http://127.0.0.1:{port}", base_dir, log_path, comfyui, list(map(str, command)))
    server.start()
    return server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
