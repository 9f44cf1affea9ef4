"""SimpleTuner's configurations: its guide's examples come over and train; every option is accounted for."""

from pathlib import Path

import pytest
from simpletuner_examples import EXAMPLES, simpletuner_dir

from support import run_in_process
from trainer_core.importers.simpletuner import Imported, import_config
from trainer_core.importers.simpletuner_draft import REFUSED, UNKNOWN, describe
from trainer_core.importers.simpletuner_model import Swaps
from trainer_core.job import TrainJob
from trainer_core.job_file import parse_job

ON_THE_CPU = {"bnb-lion8bit-paged": "bnb-lion8bit"}  # paged states and sageattention want a card


def imported(config: Path, **swaps: object) -> Imported:
    found = import_config(config, swaps=Swaps(**swaps))
    assert found.job is not None, describe(found.notes)
    return found


def cheap(job: TrainJob) -> TrainJob:
    """The job with pictures of one size in two steps, on the CPU."""
    data = job.model_dump()
    data["training"] |= {"device": "cpu"}
    data["validation"] |= {
        "validation_resolution": "64x64",
        "validation_num_inference_steps": 2,
        "validation_no_cfg_until_timestep": 0,
    }
    data["base"]["attention_mechanism"] = "diffusers"
    data["optimizer"]["optimizer"] = ON_THE_CPU.get(job.optimizer.optimizer, job.optimizer.optimizer)
    return parse_job(data)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_guide_comes_over_and_trains(name: str, tmp_path: Path) -> None:
    as_it_is = imported(simpletuner_dir(tmp_path / "own", EXAMPLES[name]))
    assert not [note for note in as_it_is.notes if note.kind in (REFUSED, UNKNOWN)]
    on_pico = imported(simpletuner_dir(tmp_path / "pico", EXAMPLES[name], small=True), base="pico")
    result = run_in_process(cheap(on_pico.job), tmp_path / "runs", tmp_path / "cache")
    assert result["steps"] == 2 and Path(result["lora"]).is_file()
