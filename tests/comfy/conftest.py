"""One real ComfyUI for all tests of this folder; where there is none they skip and say how to get one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from comfy_client import Outcome, queue
from comfy_server import HOW_TO_GET_ONE, Server, find_comfyui, find_python, missing_packages, start_server
from graphs import EXAMPLE, SAMPLER_STEPS, STEPS, TRIGGER, Prompt, change, find, load_workflow
from workflow import to_prompt


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.comfy)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI on the CPU with this pack, its folders empty."""
    comfyui = find_comfyui()
    if comfyui is None:
        pytest.skip(HOW_TO_GET_ONE)
    python = find_python(comfyui)
    missing = missing_packages(python)
    if missing:
        pytest.fail(f"ComfyUI's Python lacks {', '.join(missing)}: {python} -m pip install {' '.join(missing)}")
    running = start_server(comfyui, python, tmp_path_factory.mktemp("comfyui"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def example(server: Server) -> Prompt:
    """The example workflow as a prompt: few steps, a trigger, exact enough to compare its pictures with the trainer's own."""
    prompt = to_prompt(load_workflow(EXAMPLE), server.get("/object_info"))
    prompt = change(prompt, "TrainLoRA", max_train_steps=STEPS)
    prompt = change(prompt, "DatasetBucket", trigger_word=TRIGGER)
    prompt = change(prompt, "LoadFluxForTraining", mixed_precision="no")
    prompt = change(prompt, "BasicScheduler", steps=SAMPLER_STEPS)
    prompt = change(prompt, "ValidationConfig", validation_num_inference_steps=SAMPLER_STEPS)
    return change(prompt, "ValidationConfig", validation_prompts=prompt[find(prompt, "CLIPTextEncode")]["inputs"]["text"])


@pytest.fixture(scope="session")
def trained(server: Server, example: Prompt) -> Outcome:
    """The example, run once to its end; graphs that hold the same training find it finished."""
    outcome = queue(server.url, example, workflow=load_workflow(EXAMPLE))
    assert outcome.status == "success", outcome.error
    return outcome


@pytest.fixture
def forgetful(server: Server) -> Server:
    """The server with nothing left in its cache of node outputs."""
    server.forget()
    return server
