"""Several processes, one training: they share the samples of each step, and what comes of it is what one process makes.

The first of two processes is this one, which saves the imports of one more. `benchmarks/scale.py` does the same with four, from
`accelerate launch`, and over more steps.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from late import come_late
from PIL import Image
from safetensors.torch import load_file

from support import job_data, make_pictures
from trainer_core.commands import SAVE, STOP
from trainer_core.data.shares import Share, most_together, parts_of
from trainer_core.errors import JobError, StopRequested
from trainer_core.events import EventReader
from trainer_core.helpers import with_helpers
from trainer_core.job import TrainJob
from trainer_core.job_file import parse_job
from trainer_core.launch import launch, one_of
from trainer_core.processes import ProcessLost
from trainer_core.run_dir import RunDir, run_dir_for
from trainer_core.saved import list_steps
from trainer_core.setup import prepare
from trainer_core.tread import Span, draw_routes

STEPS = 6
SIZES = ([2], [1, 1, 1, 1], [3, 1, 2], [4, 4], [1, 2])


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_sample_of_a_step_is_computed_once_and_the_work_is_even(sizes, count):
    own = [parts_of(sizes, Share(rank, count)) for rank in range(count)]
    samples = [(part.number, row) for parts in own for part in parts for row in part.rows]
    assert samples == [(number, row) for number, size in enumerate(sizes) for row in range(size)]
    amounts = [sum(len(part.rows) for part in parts) for parts in own]
    assert max(amounts) - min(amounts) <= 1
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    assert all(part.first == starts[part.number] + part.rows.start for parts in own for part in parts)
    if len(set(sizes)) == 1:
        assert max(len(part.rows) for parts in own for part in parts) <= most_together(sizes[0], len(sizes), count)


@pytest.mark.parametrize("sizes", SIZES)
def test_in_step_all_make_as_many_passes_and_what_was_added_does_not_count(sizes):
    own = [parts_of(sizes, Share(rank, 3, in_step=True)) for rank in range(3)]
    assert len({len(parts) for parts in own}) == 1
    counted = [(part.number, row) for parts in own for part in parts if part.counts for row in part.rows]
    assert counted == [(number, row) for number, size in enumerate(sizes) for row in range(size)]


def test_a_route_leaves_out_the_same_tokens_of_a_sample_whichever_process_has_it():
    mask_BHW = torch.zeros(3, 8, 8)
    mask_BHW[1, :, :7] = 1  # its marked tokens are more than the route would keep
    spans = [Span(0.75, 1, 2), Span(0.5, 3, 3, keep_masked=False)]
    whole = draw_routes(spans, 16, mask_BHW, 0, 5, range(3))
    for row in range(3):
        others = torch.cat([mask_BHW[:row], mask_BHW[row + 1 :]])
        own = draw_routes(spans, 16, mask_BHW[row : row + 1], 0, 5, [row], others)
        assert all(torch.equal(a[row : row + 1], b) for a, b in zip(whole, own, strict=True))


def job(folder: Path, processes: int) -> TrainJob:
    """With all that could notice who computes what: masks, routes, regularisation, dropout, accumulation, averages, judging."""
    data = job_data(
        folder / "balls",
        lora={"lora_dropout": 0.1, "lora_save_precision": "fp32"},
        optimizer={"learning_rate": 1e-4},
        flow={"caption_dropout_probability": 0.3},
        validation={
            "num_validation_images": 2,
            "validation_num_inference_steps": 1,
            "validation_step_interval": 4,
            "eval_steps_interval": 3,
            "num_held_out": 1,
            "eval_timesteps": 2,
        },
        training={
            "max_train_steps": STEPS,
            "gradient_accumulation_steps": 2,
            "checkpoint_step_interval": 0,
            "use_ema": True,
            "log_interval": 2,
            "num_devices": processes,
        },
    )
    data["datasets"] = [
        {"id": "balls", "instance_data_dir": str(folder / "balls"), "mask_data_dir": str(folder / "masks")},
        {"id": "others", "instance_data_dir": str(folder / "others"), "is_regularisation_data": True},
    ]
    data["routes"] = [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -2}]
    return parse_job(data)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, cache) -> tuple[Path, dict]:
    """The pictures, and the result of a run by one process."""
    folder = tmp_path_factory.mktemp("shared")
    make_pictures(folder / "balls", 7)
    make_pictures(folder / "others", 3)
    (folder / "masks").mkdir()
    for path in (folder / "balls").glob("*.png"):
        mask = np.zeros(Image.open(path).size[::-1], dtype=np.uint8)
        mask[:, : 10 + 9 * int(path.stem[-1])] = 255
        Image.fromarray(mask).save(folder / "masks" / path.name)
    return folder, start(job(folder, 1), folder / "one", cache)


def start(job: TrainJob, out: Path, cache: Path) -> dict:
    return launch(job, RunDir(run_dir_for(job, out).root.absolute()), cache, (), watch_stdin=False)


def meanwhile(run_dir: RunDir, *deeds: tuple[str, Callable[[], object]]) -> None:
    """Do each once the run has told of an event of its kind, one after another."""

    def watch() -> None:
        events = EventReader(run_dir.events_path)
        for kind, deed in deeds:
            while not any(event["event"] == kind for event in events.new()):
                time.sleep(0.01)
            deed()

    threading.Thread(target=watch, daemon=True).start()


def check_same(one: dict, other: dict) -> None:
    """Both ran to the same end, to rounding."""
    for name in ("lora", "ema_lora"):
        ours, theirs = load_file(one[name]), load_file(other[name])
        assert all((ours[key] - theirs[key]).abs().max() <= 1e-6 for key in ours), name
    assert other["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert [e["loss"] for e in other["evaluations"]] == pytest.approx([e["loss"] for e in one["evaluations"]], abs=1e-5)
    counts = ("steps", "dropped_tokens", "dropped_share")
    assert [[route[name] for name in counts] for route in one["routes"]] == [
        [route[name] for name in counts] for route in other["routes"]
    ]
    for ours, theirs in zip(one["samples"], other["samples"], strict=True):
        differences = np.abs(np.asarray(Image.open(ours), dtype=int) - np.asarray(Image.open(theirs), dtype=int))
        assert differences.max() <= 1
    told = [
        [event["step"] for event in EventReader(RunDir(Path(each["run_dir"])).events_path).new() if event["event"] == "step"]
        for each in (one, other)
    ]
    assert told[0] == told[1] == list(range(1, STEPS + 1)), "each step is told of once"


@pytest.mark.slow
def test_two_processes_stop_together_and_one_goes_on_to_the_same_end(straight, tmp_path, cache):
    folder, expected = straight
    shared = job(folder, 2)
    run_dir = run_dir_for(shared, tmp_path)
    meanwhile(run_dir, ("step", lambda: run_dir.ask(STOP)))
    with pytest.raises(StopRequested) as stopped:
        start(shared, tmp_path, cache)
    assert 1 <= stopped.value.step < STEPS and list_steps(run_dir) == [stopped.value.step]
    alone = job(folder, 1)
    assert run_dir_for(alone, tmp_path) == run_dir, "the number of processes does not make another run of it"
    check_same(expected, start(alone, tmp_path, cache))


def test_two_processes_obey_together_and_when_one_is_killed_all_steps_are_saved(straight, tmp_path, cache):
    """Until then they made what one process makes; one goes on from there."""
    folder, expected = straight
    shared = job(folder, 2)
    run_dir = run_dir_for(shared, tmp_path)
    kill = lambda: [child.kill() for child in psutil.Process().children() if is_helper(child)]  # noqa: E731
    meanwhile(run_dir, ("step", lambda: run_dir.ask(SAVE)), ("checkpoint", kill))
    with pytest.raises(ProcessLost, match="another of the 2 processes"):
        start(shared, tmp_path, tmp_path / "cache")  # empty: one encodes the captions, and the other waits for them
    events = list(EventReader(run_dir.events_path).new())
    done = max(event["step"] for event in events if event["event"] == "step")
    assert done in list_steps(run_dir) and done < STEPS
    assert events[-1]["event"] == "error" and "goes on at the step that was saved" in events[-1]["message"]
    check_same(expected, start(job(folder, 1), tmp_path, cache))


def is_helper(process: psutil.Process) -> bool:
    return any("spawn_main" in word for word in process.cmdline())


def test_who_waits_waits_for_the_last(tmp_path):
    with with_helpers(2, "cpu", partial(come_late, tmp_path / "there")) as group:
        group.wait()
        assert (tmp_path / "there").exists()


def test_more_processes_than_samples_are_refused_with_the_mend(pictures, tmp_path, cache):
    data = job_data(pictures, training={"train_batch_size": 1, "num_devices": 2})
    with pytest.raises(JobError, match=r"2 processes cannot share a step of 1 .* at least 2 samples a step"):
        start(parse_job(data), tmp_path, cache)


def test_the_plan_of_one_of_several_processes_has_its_part_of_the_batch(pictures):
    training = {"train_batch_size": 6, "gradient_accumulation_steps": 2}
    setup = prepare(parse_job(job_data(pictures, training=training)))
    assert one_of(setup, 1) == setup
    shared = one_of(setup, 4).job.training
    assert (shared.train_batch_size, shared.gradient_accumulation_steps) == (3, 4)
