"""A webhook hears once how a run has ended, whichever way that was."""

import json
from pathlib import Path

import pytest
from small_servers import serving

from support import job_data
from trainer_core.job_file import parse_job
from trainer_core.run_dir import RunDir
from trainer_core.webhook import Webhook

STARTED = {"event": "started", "run_id": "test-1", "steps": 9}
STEP = {"event": "step", "step": 3, "steps": 9, "loss": 0.5}
ENDS = {
    "done": ({"event": "done", "step": 9, "lora": "/runs/test-1/test.safetensors", "seconds": 1.5}, "done", ""),
    "stopped": ({"event": "stopped", "step": 3}, "stopped", ""),
    "an error": ({"event": "error", "message": "the disk is full"}, "failed", "the disk is full"),
    "a kill": (None, "failed", "it ended without a word; its log says why"),
}


@pytest.mark.parametrize("end", ENDS)
def test_each_end_of_a_run_is_told_once(end: str, tmp_path: Path) -> None:
    event, said, message = ENDS[end]
    with serving(lambda asked: (200, {})) as (address, asked):
        hook = Webhook(parse_job(job_data(tmp_path, publishing={"webhook_url": address})), RunDir(tmp_path / "test-1"))
        for told in (STARTED, STEP, *([event] if event else [])):
            hook(told)
        hook.close()
    [sent] = [json.loads(one.body) for one in asked]
    assert (sent["event"], sent["message"], sent["run_id"], sent["name"]) == (said, message, "test-1", "test")
    assert (sent["step"], sent["steps"]) == ((9, 9) if end == "done" else (3, 9))
    assert sent["lora"] == ("test.safetensors" if end == "done" else None)


def test_a_run_that_never_began_is_not_told_of(tmp_path: Path) -> None:
    with serving(lambda asked: (200, {})) as (address, asked):
        hook = Webhook(parse_job(job_data(tmp_path, publishing={"webhook_url": address})), RunDir(tmp_path / "test-1"))
        hook.close()
    assert not asked
