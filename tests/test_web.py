"""The page's own logic, in node.js: the fold of a real run's events, curves, words, the prompt library."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from support import ROOT, job_data, run_in_process
from trainer_core.errors import StopRequested
from trainer_core.events import EventLog, EventReader
from trainer_core.job_file import parse_job
from trainer_core.run_dir import RunDir, run_dir_for

WEB = ROOT / "web"
SCRIPTS = sorted(WEB.rglob("*.js"))
ADDRESS = re.compile(r"https?:|['\"`(]//")
EMITTED = 500
NODE = shutil.which("node")


@pytest.fixture(scope="module")
def run_dir(pictures: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of six steps with everything that makes events: stopped after the third, and gone on with."""
    validation = {"num_validation_images": 2, "validation_num_inference_steps": 2, "validation_step_interval": 3}
    validation |= {"eval_steps_interval": 3, "num_held_out": 1, "eval_timesteps": 1}
    data = job_data(pictures, validation=validation, training={"log_interval": 2, "checkpoint_step_interval": 3})
    job, out = parse_job(data, "test"), tmp_path_factory.mktemp("runs")
    with pytest.raises(StopRequested):
        run_in_process(job, out, cache, stop_before=3)
    run_in_process(job, out, cache)
    return run_dir_for(job, out)


@pytest.mark.skipif(NODE is None, reason="no node.js: install Node 20 or newer to run the page's tests")
@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "tests" / "web").glob("*.test.mjs")))
def test_the_page_s_logic_does_what_its_tests_say(run_dir: RunDir, name: str) -> None:
    environment = {**os.environ, "FLUX_LORA_EVENTS": str(run_dir.events_path)}
    command = [NODE, "--test", str(ROOT / "tests" / "web" / name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_telling_a_step_costs_less_than_a_hundredth_of_it(run_dir: RunDir, tmp_path: Path) -> None:
    steps = [event for event in EventReader(run_dir.events_path).new() if event["event"] == "step"]
    fields = {name: value for name, value in steps[0].items() if name not in ("time", "event")}
    events = EventLog(tmp_path / "events.jsonl")
    began = time.perf_counter()
    for _ in range(EMITTED):
        events.emit("step", **fields)
    cost = (time.perf_counter() - began) / EMITTED
    events.close()
    fastest = min(event["seconds"] for event in steps)
    print(f"{1e6 * cost:.0f} us to tell a step, {100 * cost / fastest:.2f} % of the fastest")
    assert cost < 0.01 * fastest


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(WEB).as_posix())
def test_a_script_says_its_idea_stays_short_and_loads_nothing_from_elsewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("// ")
    assert len(text.splitlines()) < 300
    assert not ADDRESS.search(text.replace("http://www.w3.org/2000/svg", "")), "an address of another place"


def test_files_in_lib_do_nothing_when_they_are_loaded() -> None:
    """ComfyUI loads every script below web/ by itself, in any order."""
    for path in SCRIPTS:
        begun = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1].isalpha()]
        words = {line.split("(")[0].split(" ")[0] for line in begun}
        allowed = {"import", "export", "const", "function", "async"} | (
            {"app.registerExtension"} if path.parent.name != "lib" else set()
        )
        assert words <= allowed, f"{path.name}: {words - allowed}"
