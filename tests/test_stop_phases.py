"""A wish to stop is heeded in every phase, at its next item, and whatever it interrupts is made up for: one job, stopped in
each of its phases one after the other, ends with the bytes of the run that was left alone."""

import time
from pathlib import Path

import pytest
from PIL import Image

from support import job_data, make_pictures, opened
from trainer_core.context import RunContext
from trainer_core.errors import StopRequested
from trainer_core.events import Event, EventLog
from trainer_core.job import TrainJob
from trainer_core.job_file import parse_job
from trainer_core.run_dir import RunDir, run_dir_for
from trainer_core.saved import BEST, find_lora, list_steps
from trainer_core.setup import prepare
from trainer_core.train import run

SECONDS = 2.0  # of the processor, until it has left
NEWS = {  # what a phase that goes on in spite of the wish would tell
    "index": "dataset",
    "encode pictures": "adapter",
    "encode captions": "adapter",
    "encode masks": "adapter",
    "check cache": "adapter",
    "quantise": "adapter",
    "sample": "sample",
    "evaluate": "evaluation",
}


class Stopper:
    """Wishes to stop from the first event of a phase on, or of another kind."""

    def __init__(self, wanted: str):
        self._wanted = wanted
        self.since: float | None = None
        self.later: list[Event] = []

    def __call__(self, event: Event) -> None:
        if self.since is not None:
            self.later.append(event)
        elif self._wanted in (event["event"], event.get("phase")):
            self.since = time.process_time()

    def should_stop(self) -> bool:
        return self.since is not None


def start(job: TrainJob, run_dir: RunDir, cache: Path, stopper: Stopper) -> dict:
    run_dir.root.mkdir(parents=True, exist_ok=True)
    log = EventLog(run_dir.events_path, stopper)
    context = RunContext(run_dir, cache, log, stopper.should_stop)
    try:
        return run(prepare(job, cache, context.stoppable("index")), context)
    finally:
        log.close()


@pytest.fixture
def job(tmp_path) -> TrainJob:
    folder = make_pictures(tmp_path / "pictures")
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            (tmp_path / "masks").mkdir(exist_ok=True)
            Image.new("L", picture.size, 200).save(tmp_path / "masks" / path.name)
    data = job_data(
        folder,
        base={"base_model_precision": "int8-quanto"},
        validation={
            "num_validation_images": 2,
            "validation_num_inference_steps": 3,
            "num_held_out": 2,
            "eval_steps_interval": 2,
        },
        training={"max_train_steps": 4, "checkpoint_step_interval": 0},
    )
    data["datasets"][0]["mask_data_dir"] = str(tmp_path / "masks")
    return parse_job(data)


def test_a_run_that_is_stopped_in_each_of_its_phases_ends_with_the_bytes_of_a_straight_one(job, tmp_path):
    run_dir, cache = run_dir_for(job, tmp_path / "stopped"), tmp_path / "cache"
    for phase in (
        "index",
        "encode pictures",
        "encode captions",
        "encode masks",
        "check cache",
        "quantise",
        "sample",
        "evaluate",
    ):
        stopper = Stopper(phase)
        with pytest.raises(StopRequested) as stopped:
            start(job, run_dir, cache, stopper)
        assert time.process_time() - stopper.since < SECONDS, phase
        assert stopped.value.step == 0 and stopper.later[-1]["event"] == "stopped", phase
        assert NEWS[phase] not in {event["event"] for event in stopper.later}, phase
        if phase in ("encode pictures", "encode captions"):
            samples = prepare(job).samples
            shards, names = opened(samples, cache).needed(samples, [])[0]
            there = sum(name in shards for name in names)
            assert there <= 1 if phase == "encode pictures" else there == len(names) > 1, "it went on with the pictures"
    for step in (1, 3):
        with pytest.raises(StopRequested) as stopped:
            start(job, run_dir, cache, Steps(step))
        assert stopped.value.step == step and list_steps(run_dir)[-1] == step
    assert find_lora(run_dir, BEST).step == 2, "the best is known of a run that was stopped"
    ended, straight = (
        start(job, run_dir, cache, Stopper("never")),
        start(job, run_dir_for(job, tmp_path / "straight"), cache, Stopper("never")),
    )
    assert Path(ended["lora"]).read_bytes() == Path(straight["lora"]).read_bytes()
    assert ended["losses"] == straight["losses"] and ended["evaluations"] == straight["evaluations"]


class Steps(Stopper):
    """From the step of that number on."""

    def __init__(self, step: int):
        super().__init__("")
        self._step = step

    def __call__(self, event: Event) -> None:
        if event["event"] == "step" and event["step"] == self._step:
            self.since = time.process_time()
