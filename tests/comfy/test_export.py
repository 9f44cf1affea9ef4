"""Jobs made without Train LoRA's widgets: of a workflow without ComfyUI, and of a SimpleTuner configuration within."""

import json
from pathlib import Path
from typing import Any

import pytest
from comfy_client import Outcome, queue
from comfy_server import PACK_NAME, PACK_ROOT, Server
from graphs import EXAMPLES, Prompt, load_workflow
from simpletuner_examples import EXAMPLES as CONFIGS
from simpletuner_examples import simpletuner_dir
from test_permissions import refusal, strict  # noqa: F401
from workflow import to_prompt

from trainer_core.graph import parse_graph
from trainer_core.graph_job import ComfyFolders, export_job
from trainer_core.importers.simpletuner import import_config
from trainer_core.importers.simpletuner_model import Swaps

SOCKETS = (
    "model",
    "dataset",
    "lora",
    "routes",
    "optimizer",
    "flow",
    "validation",
    "options",
    "max_train_steps",
    "training_seed",
)


def exported(graph: dict[str, Any], node: str = "") -> dict[str, Any]:
    job = export_job(parse_graph(graph, "it"), ComfyFolders(), node, device="cpu")
    return json.loads(job.model_dump_json(exclude={"metadata"}))


def made_in_comfyui(server: Server, name: str) -> dict[str, Any]:
    """The job of the run of this name, as Train LoRA made it; the pack's own pictures lie where the tests have them."""
    text = (next(server.runs_dir.glob(f"{name}-*")) / "job.json").read_text(encoding="utf-8")
    job = json.loads(text.replace(str(server.base_dir / "custom_nodes" / PACK_NAME), str(PACK_ROOT)))
    del job["metadata"]
    return job


def test_the_exported_job_is_the_one_that_train_lora_makes(server: Server, example: Prompt, trained: Outcome) -> None:
    assert exported(example) == made_in_comfyui(server, "pico-demo")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_both_forms_of_a_shipped_workflow_are_the_same_job(server: Server, path: Path) -> None:
    workflow = load_workflow(path)
    prompt = to_prompt(workflow, server.get("/object_info"))
    trainers = [name for name, node in prompt.items() if node["class_type"] == "TrainLoRA"]
    assert trainers
    for trainer in trainers:
        assert exported(workflow, trainer) == exported(prompt, trainer)


def test_what_a_configuration_would_publish_is_refused_in_a_graph_until_the_owner_allows_the_network(
    server: Server,
    strict: Path,  # noqa: F811
) -> None:
    options = CONFIGS["hub and tracker"] + '"webhook_config": {"webhook_type": "raw", "callback_url": "https://example.org/"},'
    config = simpletuner_dir(server.base_dir / "input" / "hub", options, small=True)
    wires = {name: ["import", number] for number, name in enumerate(SOCKETS)} | {"publishing": ["import", 12]}
    prompt = {
        "import": {"class_type": "ImportSimpleTunerConfig", "inputs": {"config": str(config), "base": "pico"}},
        "train": {"class_type": "TrainLoRA", "inputs": {**wires, "name": "hub"}},
    }
    told = refusal(server, prompt, "TrainLoRA")
    assert "push_to_hub, webhook_url is on" in told and '"allow_network": true' in told
    assert not list(server.runs_dir.glob("hub-*"))


def test_a_simpletuner_configuration_trains_in_the_graph_and_its_export_is_the_same(server: Server, tmp_path: Path) -> None:
    options = CONFIGS["tread"] + '"num_validation_images": 0, "gradient_accumulation_steps": 1,'
    config = simpletuner_dir(tmp_path, options, small=True)
    wires = {name: ["import", number] for number, name in enumerate(SOCKETS)}
    prompt = {
        "import": {"class_type": "ImportSimpleTunerConfig", "inputs": {"config": str(config), "base": "pico"}},
        "train": {"class_type": "TrainLoRA", "inputs": {**wires, "name": "imported"}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["import", 10]}},
    }
    outcome = queue(server.url, prompt)
    assert outcome.status == "success", outcome.error
    job = import_config(config, swaps=Swaps(base="pico")).job.model_copy(update={"name": "imported"})
    expected = json.loads(job.model_dump_json(exclude={"metadata"}))
    expected["training"]["device"] = "cpu"
    assert made_in_comfyui(server, "imported") == expected == exported(prompt)
    assert "taken with another meaning (" in outcome.outputs["report"]["text"][0]


def test_a_configuration_that_is_refused_says_so_on_the_node(server: Server, tmp_path: Path) -> None:
    config = simpletuner_dir(tmp_path, '"controlnet": true,')
    prompt = {
        "import": {"class_type": "ImportSimpleTunerConfig", "inputs": {"config": str(config)}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["import", 10]}},
    }
    outcome = queue(server.url, prompt)
    assert (outcome.status, outcome.error_node) == ("error", "ImportSimpleTunerConfig")
    assert "ControlNets are not trained here" in outcome.error
