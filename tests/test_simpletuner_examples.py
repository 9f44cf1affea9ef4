"""The examples of SimpleTuner's guide: each comes over as it is, and trains on weights of the size of pico.

What is trained is what the example says, but for the size and steps of pictures, bf16, blocks that would be compiled in a
longer run only, and what wants a card or a package that is not here. Examples that name a flavour train under its name.
"""

from collections.abc import Iterable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import pytest
from model_files import WITHOUT_GUIDANCE, write
from simpletuner_examples import CROPS, EXAMPLES, simpletuner_dir

from support import run_in_process
from trainer_core.flux.files import PICO_FILES
from trainer_core.importers.simpletuner import import_config
from trainer_core.importers.simpletuner_draft import REFUSED, UNKNOWN, describe
from trainer_core.importers.simpletuner_model import Swaps
from trainer_core.job import TrainJob
from trainer_core.job_file import parse_job

ON_THE_CPU = {"bnb-lion8bit-paged": "bnb-lion8bit"}  # paged states want a card
TRAINED = (  # several to a run where they do not touch
    ("variables", "lora_rank", "hub and tracker", "nicknames"),
    ("schnell", "optimi-lion"),
    ("prompt library", "auto shift", "optimi-stableadamw"),
    ("int8", "shift 0.1", "fluxbooru"),
    ("lora settings", "shift 4.0", "guidance"),
    ("loftq on nf4",),
    ("context+ffs", "libreflux"),
    ("lowest memory",),
    ("tread",),
    ("lokr",),
    ("dev2pro", "standard"),
    ("dev", "all+ffs", "rank 1"),
    ("kontext", "context", "guidance 4.5"),
    ("olora", "bf16", "square"),
    ("int4", "random"),
    ("int2",),
    ("nf4",),
    ("int8 with compile",),
    ("lokr with lion",),
)
FLAVOURED = ("variables", "schnell", "dev", "kontext", "fluxbooru", "libreflux", "dev2pro")  # the others train pico: for time
TOO_DEEP = ("tiny", "nano")  # of single blocks 7 and 20; pico has four
NUM_PROMPTS = {"prompt library": 15, "nicknames": 2}
SIZE = "32x32"


def job_of(folder: Path, names: Iterable[str], **swaps: str) -> TrainJob:
    """The job of these examples together."""
    text = "\n".join(EXAMPLES[name] for name in names if name in EXAMPLES)
    crops = next((name for name in names if name in CROPS), "")
    found = import_config(simpletuner_dir(folder, text, small=bool(swaps), crops=crops), swaps=Swaps(**swaps))
    assert found.job is not None and not [note for note in found.notes if note.kind in (REFUSED, UNKNOWN)], describe(
        found.notes
    )
    return found.job


@pytest.fixture(scope="module")
def without_guidance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The transformer as schnell and LibreFLUX come."""
    return write(tmp_path_factory.mktemp("files") / "flux.safetensors", WITHOUT_GUIDANCE)


@pytest.mark.parametrize("name", [*EXAMPLES, *CROPS])
def test_an_example_of_the_guide_comes_over_as_it_is(name: str, tmp_path: Path) -> None:
    job = job_of(tmp_path, [name])
    assert [dataset.instance_data_dir for dataset in job.datasets] == [
        str(tmp_path / "datasets" / folder) for folder in ("pseudo-camera-10k", "dreambooth-subject", "dreambooth-subject")
    ]
    assert not job.base.allow_download


@pytest.mark.parametrize("names", TRAINED, ids=" with ".join)
def test_the_examples_train_on_the_size_of_pico(
    names: tuple[str, ...], tmp_path: Path, cache: Path, without_guidance: Path
) -> None:
    files = {name: str(path) for name, path in asdict(PICO_FILES).items()}
    if {"schnell", "libreflux"} & set(names):
        files["transformer"] = str(without_guidance)
    job = job_of(tmp_path / "simpletuner", names, **(files if set(FLAVOURED) & set(names) else {"base": "pico"}))
    result = run_in_process(small(job), tmp_path / "runs", cache)
    assert result["steps"] == 2 and Path(result["lora"]).is_file()
    assert len(result["samples"]) == next((count for name, count in NUM_PROMPTS.items() if name in names), 4)


def test_every_example_is_trained_but_what_no_small_base_has() -> None:
    assert {*EXAMPLES, *CROPS} - set(TOO_DEEP) == {name for names in TRAINED for name in names}


def small(job: TrainJob) -> TrainJob:
    """The job on the CPU, with small pictures in few steps."""
    data = job.model_dump()
    data["training"] |= {"device": "cpu"}
    if job.training.torch_compile == "auto":
        data["training"]["torch_compile"] = "on"
    if job.training.report_to != "none" and not find_spec(job.training.report_to):
        data["training"] |= {"report_to": "none", "tracker_project_name": ""}
    data["validation"] |= {"validation_resolution": SIZE, "validation_num_inference_steps": 1}
    if job.base.base_model_precision != "bf16":
        data["base"]["mixed_precision"] = "no"  # bf16 takes 30 times as long on processors without instructions for it
    if job.base.attention_mechanism == "sageattention":
        data["base"]["attention_mechanism"] = "diffusers"
    data["optimizer"]["optimizer"] = ON_THE_CPU.get(job.optimizer.optimizer, job.optimizer.optimizer)
    return parse_job(data)
