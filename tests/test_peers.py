"""The harness that runs other trainers beside ours: what it makes of what a side did, with small programs for sides."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.peer_inputs import Inputs
from benchmarks.peer_starts import Case, Start
from benchmarks.peers import PeerError, Run, last_words, rows, run_side, seen, steps_of

CASE = Case(pixels=64, rank=4, dtype="no", recompute=False, steps=3, most=120.0)
NOTHING = Inputs(Path(), Path(), Path(), Path())
TRAINS = """
import torch
parameter = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.AdamW([parameter])
trial = torch.nn.Parameter(torch.ones(5))
trial.sum().backward()
torch.optim.AdamW([trial]).step()
for _ in range(100):
    parameter.square().sum().backward()
    optimizer.step()
raise SystemExit("it was to end before")
"""


def side_of(program: str):
    return lambda case, inputs, folder: Start([sys.executable, "-c", program], {})


def test_a_side_is_watched_from_outside_and_ends_with_its_last_step(tmp_path):
    run = run_side(side_of(TRAINS), CASE, NOTHING, tmp_path)
    trial, *steps = (tmp_path / "steps.jsonl").read_text().splitlines()
    assert len(steps) == CASE.steps
    assert steps_of([trial, *steps]) == [json.loads(step) for step in steps]
    assert 0 < run.step < run.first
    assert run.peak > 50 << 20
    assert not (tmp_path / "said.txt").read_text()


def test_a_side_that_fails_has_the_reason_that_it_said(tmp_path):
    with pytest.raises(PeerError, match="ended after 0 of 3 steps: ValueError: no such thing"):
        run_side(side_of("raise ValueError('no such thing')"), CASE, NOTHING, tmp_path)


def test_a_side_that_takes_too_long_is_ended_with_what_it_started(tmp_path):
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    with pytest.raises(PeerError, match="fewer than 3 steps in 2 s"):
        run_side(side_of(program), replace(CASE, most=2.0), NOTHING, tmp_path)


def test_a_step_is_the_median_interval_after_the_first():
    steps = [{"at": at, "peak_bytes": 10 * at, "torch": "2", "threads": 2} for at in (107, 117, 118, 120, 123)]
    assert seen(steps, 100.0) == Run(step=2, first=7.0, peak=1230, torch="2", threads=2)


def test_the_reason_is_the_error_itself_not_that_of_the_launcher():
    said = "hello\nTraceback:\n  File x\n\x1b[0mRuntimeError\x1b[0m: no driver\nsubprocess.CalledProcessError: exit 1\n"
    assert last_words(said) == "RuntimeError: no driver"
    assert last_words("usage: x\nx: unrecognised\n") == "x: unrecognised"
    assert last_words("") == "it said nothing"


def test_a_ratio_is_that_of_the_same_round_and_a_side_without_figures_has_its_reason():
    def run(step: float) -> Run:
        return Run(step, 10 * step, round(1000 * step), "2", 2)

    runs = {"ours": [run(1), run(10), run(3)], "peer": [run(2), run(20), run(3)], "broken": [run(5)]}
    ours, peer, broken, absent = rows(runs, {"broken": "it fell over", "absent": "not given"})
    assert (ours["side"], ours["seconds_per_step"], ours["ours_to_it"]) == ("ours", 3, {})
    assert (peer["rounds"], peer["ours_to_it"]) == (3, {"step": 0.5, "first": 0.5, "peak": 0.5})
    assert broken == {"side": "broken", "reason": "it fell over"}
    assert absent == {"side": "absent", "reason": "not given"}
