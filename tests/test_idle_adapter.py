"""A LoRA that has learned nothing yet is saved and gone on with like any other: regularisation pictures may come first."""

import pytest

from support import job_data, make_pictures, run_in_process
from trainer_core.errors import StopRequested
from trainer_core.job_file import parse_job


def test_a_run_that_saw_regularisation_pictures_alone_stops_and_goes_on(tmp_path, cache):
    data = job_data(make_pictures(tmp_path / "subject", 2), training={"max_train_steps": 3, "use_ema": True})
    plain = data["datasets"][0] | {"id": "plain", "instance_data_dir": str(make_pictures(tmp_path / "plain", 2))}
    data["datasets"] = [data["datasets"][0] | {"start_step": 2}, plain | {"is_regularisation_data": True}]
    job = parse_job(data)
    with pytest.raises(StopRequested) as stopped:
        run_in_process(job, tmp_path / "runs", cache, stop_before=2)
    assert stopped.value.step == 2
    result = run_in_process(job, tmp_path / "runs", cache)
    assert result["losses"][:2] == [0.0, 0.0] and result["losses"][2] > 0
