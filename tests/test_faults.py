"""What docs/faults.md promises, in small; its commands show it at length (`python -m tests.faults`)."""

import random
import shutil
import sys
from pathlib import Path

import pytest

from tests.faults.bits import damage
from tests.faults.disks import can_mount, lost, read_only, second_process
from tests.faults.full import CAPTIONS, CHECKPOINT, FINAL, MASKS, PICTURES, fill_one, places_of
from tests.faults.harmed import Harmed, differences, finish, make_straight, report_of, said
from tests.faults.kills import kill_many
from tests.faults.memory import EXPLAINED, starve_one
from trainer_core.events import EventReader
from trainer_core.saved import list_checkpoints

STEPS = 4
SLOW_PLACES = (PICTURES, CAPTIONS, MASKS, CHECKPOINT)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals, limits and mounts are Linux's")


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Harmed:
    return make_straight(tmp_path_factory.mktemp("faults"), max_train_steps=STEPS, checkpoint_step_interval=1)


@pytest.fixture
def mounting() -> None:
    if not can_mount():
        pytest.skip("mounting a small disk needs root")


def test_runs_that_are_killed_anywhere_end_as_if_nothing_had_happened(straight):
    report = kill_many(straight, 3, seed=5)
    assert report["kept"] and report["kills"] == report["resumed"] == report["byte_equal"] == 3, report


def test_a_finished_run_whose_files_are_damaged_is_finished_once_more(straight):
    """The LoRA, the result, a tensor of the newest checkpoint, a number of the one before, the cache, pictures, the job and the
    first event, all at once."""
    harmed, dice = straight.beside("damaged"), random.Random(3)
    shutil.copytree(straight.out, harmed.out)
    run = harmed.run_dir
    newest, before, _ = list_checkpoints(run.checkpoints_dir)
    shards = [next((harmed.out / "cache" / kind).glob("*.safetensors")) for kind in ("latents", "captions", "masks")]
    broken = [Path(run.result()["lora"]), newest / "optimizer.safetensors", *shards, *harmed.out.glob("cache/pictures/*/*")]
    for path in [*broken, run.sample_path(0, "00"), run.sample_path(STEPS, "01"), run.result_path]:
        damage(path, dice)
    state = before / "state.json"
    state.write_text(state.read_text().replace('"loss": 0', '"loss": 9', 1))
    run.job_path.write_text(run.job_path.read_text().replace('"seed": 42', '"seed": 43'))
    run.events_path.write_bytes(b"?" + run.events_path.read_bytes()[1:])  # a LoRA tells the day that it had
    assert finish(harmed, by_folder=True) == 0, said(harmed)
    assert not differences(harmed, straight)
    told = [event["message"] for event in EventReader(run.events_path).new() if event["event"] == "warning"]
    assert all(any(f"{folder} is damaged" in message for message in told) for folder in (newest, before))
    assert sum(message.startswith("cache shard") for message in told) == 3
    assert "job.json is damaged, or was edited" in harmed.log.read_text()


@pytest.mark.parametrize("name", [FINAL, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_PLACES)])
def test_a_full_disk_is_named_and_the_run_goes_on_once_there_is_room(straight, mounting, name):
    place = next(place for place in places_of(straight) if place.name == name)
    where, problem = fill_one(straight, f"full-{name}", place, 0.5)
    assert (where, problem) == (name, "")


def test_a_folder_that_may_not_be_written_is_named(straight, mounting):
    assert "nothing may be written there" in read_only(straight)


@pytest.mark.slow
def test_a_folder_that_goes_away_is_not_made_anew(straight, mounting):
    assert "is gone" in lost(straight)


def test_the_second_process_is_refused_by_the_name_of_the_first_and_a_dead_one_holds_nothing(straight):
    assert "is being trained by another process (number " in second_process(straight)


def test_host_memory_that_runs_out_is_explained_and_the_run_goes_on(straight):
    harmed = straight.beside("starved")
    assert starve_one(harmed, "index", 0) == EXPLAINED, said(harmed)
    told = report_of(harmed)["error"]
    assert "What helps most here" in told
    assert ("gradient_checkpointing" in told) == told.startswith(("training:", "step ")), "a fast machine has indexed before"
    assert finish(harmed) == 0 and not differences(harmed, straight)
