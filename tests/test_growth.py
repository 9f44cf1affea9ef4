"""What must not grow faster than what it works on: counted in calls and in planned bytes, which no busy machine changes."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from support import add_lora
from trainer_core.data.buckets import Bucket
from trainer_core.data.order import Order
from trainer_core.data.sample import Facts, Sample
from trainer_core.event_file import newest_events, read_page
from trainer_core.events import EventLog
from trainer_core.flux.load import FluxShape, empty_transformer
from trainer_core.history import History
from trainer_core.plan.activations import Pass, predict
from trainer_core.plan.rehearse import Cost, rehearse
from trainer_core.specs.adapter import LoraSpec
from trainer_core.step import StepRecord

TINY = FluxShape(num_double=1, num_single=1, width=128, in_channels=64, t5_width=16, clip_width=8, guidance=False)
RECORD = StepRecord(0.5, 1.0, (0.3, 0.7), (0.4, 0.6), ("a", "b"), (), 32)


def calls_in(work: Callable[[], Any]) -> int:
    """Functions called, of Python and of C, while the work is done."""
    count = 0

    def seen(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def samples(count: int) -> list[Sample]:
    sizes = (Bucket(64, 64), Bucket(64, 96), Bucket(96, 64))
    return [Sample("", f"{n}.png", ("a",), Facts(64, 64, ""), sizes[n % 3], ()) for n in range(count)]


def log_of(path: Path, steps: int) -> tuple[EventLog, History]:
    """A run's events and history after so many steps."""
    log, history = EventLog(path), History()
    for _ in range(steps):
        record_step(log, history)
    return log, history


def record_step(log: EventLog, history: History) -> None:
    history.add(RECORD, 0.1, 0.0)
    log.emit("step", step=history.step, steps=9999, loss=0.5, learning_rate=1e-4, grad_norm=1.0, seconds=0.1)
    if history.step % 10 == 0:
        log.emit("metrics", **history.report(), learning_rate=1e-4, memory_gib={})


def test_an_epoch_of_twice_the_samples_takes_twice_the_work():
    def work(count: int) -> int:
        chosen = samples(count)
        return calls_in(lambda: Order(chosen, batch_size=2, seed=0).indices_of_epoch(0))

    assert work(4000) < 2.2 * work(2000)


def test_a_later_step_is_recorded_and_found_with_the_work_of_an_early_one(tmp_path):
    logs = [log_of(tmp_path / f"{steps}.jsonl", steps) for steps in (100, 5000)]
    early, late = (calls_in(lambda log=log, history=history: record_step(log, history)) for log, history in logs)
    assert late == early
    wanted = {"step": ("step", "loss"), "metrics": ("step",)}
    early, late = (calls_in(lambda n=n: newest_events(tmp_path / f"{n}.jsonl", wanted)) for n in (100, 5000))
    assert late < 1.5 * early
    pages = []
    for number in (100, 5000):
        path = tmp_path / f"{number}.jsonl"
        pages.append(calls_in(lambda path=path: read_page(path, path.stat().st_size - 200)))
    assert pages[1] < 1.5 * pages[0], "who has seen the rest reads the news alone"
    for log, _ in logs:
        log.close()


def test_each_sample_of_a_batch_takes_the_same_memory_and_the_same_operations():
    def cost(batch: int) -> Cost:
        model = nn.Module.to(empty_transformer(TINY), torch.float32).requires_grad_(False)
        add_lora(model, LoraSpec(lora_rank=2))
        one = Pass(batch, 256, 256, 32)
        return rehearse(model, lambda: predict(model.train(), TINY, one).square().mean().backward())

    one, two, four = (cost(batch) for batch in (1, 2, 4))
    assert four.peak - two.peak == pytest.approx(2 * (two.peak - one.peak), rel=0.05) and two.peak <= 2 * one.peak
    assert (two.flops, four.flops) == pytest.approx((2 * one.flops, 4 * one.flops), rel=0.01)
