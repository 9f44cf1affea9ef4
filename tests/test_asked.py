"""Sample now, with a prompt typed in: the picture is the run's own, and the training does not notice."""

from pathlib import Path

import pytest

from support import job_data
from trainer_core.commands import Command, make_command
from trainer_core.context import RunContext
from trainer_core.events import Event, EventLog
from trainer_core.job_file import parse_job
from trainer_core.run_dir import run_dir_for
from trainer_core.setup import prepare
from trainer_core.train import run


@pytest.fixture
def train(tmp_path, pictures, cache):
    """Run a job that pictures 'a blue box', with commands before the steps of these numbers; the result and the events."""

    def start(name: str, wishes: dict[int, list[Command]]) -> tuple[dict, list[Event]]:
        validation = {
            "num_validation_images": 4,
            "validation_prompts": ["a blue box"],
            "validation_num_inference_steps": 1,
            "validation_step_interval": 2,
        }
        job = parse_job(job_data(pictures, validation=validation, training={"max_train_steps": 3}))
        run_dir, events = run_dir_for(job, tmp_path / name), []
        run_dir.root.mkdir(parents=True)
        log = EventLog(run_dir.events_path, events.append)

        def next_command() -> Command | None:
            step = max((event["step"] for event in events if event["event"] == "step"), default=0)
            return wishes[step].pop(0) if wishes.get(step) else None

        try:
            return run(prepare(job), RunContext(run_dir, cache, log, lambda: False, next_command)), events
        finally:
            log.close()

    return start


def test_a_typed_prompt_is_pictured_like_those_of_the_run_and_changes_no_byte_of_it(train):
    plain, _ = train("plain", {})
    asked = [make_command("sample", prompt) for prompt in ("a red ball", "a blue box", "<token> in a park")]
    result, events = train("asked", {2: asked})
    assert Path(result["lora"]).read_bytes() == Path(plain["lora"]).read_bytes()
    assert result["losses"] == plain["losses"] and result["samples"] != []

    typed = [event for event in events if event["event"] == "sample" and event["index"] is None]
    assert [(event["step"], event["prompt"], event["compared"]) for event in typed] == [
        (2, "a red ball", None),
        (2, "a blue box", None),
    ]
    own = Path(result["run_dir"]) / "samples" / "step-000002" / "00.png"
    ball, box = (Path(event["path"]).read_bytes() for event in typed)
    assert box == own.read_bytes() != ball
    assert len([event for event in events if event["event"] == "sample"]) == 3 + len(typed)
