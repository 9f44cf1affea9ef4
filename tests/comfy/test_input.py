"""What users give: folders, pictures from the graph, and mistakes, which show on the node in the words of the command line."""

import json
from pathlib import Path

import pytest
from comfy_client import Outcome, queue
from comfy_server import Server
from graphs import Prompt, change, find, only

from trainer_core.data.index import index_datasets
from trainer_core.errors import JobError
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.specs.dataset import DatasetSpec


def dataset_graph(example: Prompt, **inputs: object) -> Prompt:
    """DatasetBucket alone, its report shown."""
    prompt = change(only(example, "DatasetBucket"), "DatasetBucket", **inputs)
    return prompt | {"report": {"class_type": "PreviewAny", "inputs": {"source": [find(prompt, "DatasetBucket"), 2]}}}


def test_an_empty_folder_is_refused_on_the_node_in_the_core_s_words(server: Server, example: Prompt, tmp_path: Path) -> None:
    outcome = queue(server.url, dataset_graph(example, path=str(tmp_path), id="mine"))
    spec = DatasetSpec(id="mine", instance_data_dir=str(tmp_path))
    with pytest.raises(JobError) as refusal:
        index_datasets((spec,), FLAVOURS["pico"])
    assert (outcome.status, outcome.error_node) == ("error", "DatasetBucket")
    assert outcome.error.strip() == str(refusal.value)


def test_tread_routes_reach_the_training(server: Server, example: Prompt) -> None:
    prompt = change(only(example, "TrainLoRA"), "TrainLoRA", name="routed", max_train_steps=2, routes=["route", 0])
    prompt = change(prompt, "ValidationConfig", validation_prompts="", num_validation_images=0)
    inputs = {"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -2, "keep_masked": True, "anneal_from": 1.0}
    outcome = queue(server.url, prompt | {"route": {"class_type": "TREADRoute", "inputs": inputs}})
    assert outcome.status == "success", outcome.error
    manifest = json.loads((next(server.runs_dir.glob("routed-*")) / "manifest.json").read_text(encoding="utf-8"))
    expected = {"ratio": 0.5, "first": 1, "last": 4, "until_step": None, "keep_masked": True}
    assert manifest["routes"] == [expected]


def test_routes_that_the_base_cannot_take_are_named_on_the_node(server: Server, example: Prompt) -> None:
    prompt = change(only(example, "TrainLoRA"), "TrainLoRA", name="unroutable", routes=["route", 0])
    inputs = {"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": 9, "keep_masked": True, "anneal_from": 1.0}
    outcome = queue(server.url, prompt | {"route": {"class_type": "TREADRoute", "inputs": inputs}})
    assert (outcome.status, outcome.error_node) == ("error", "TrainLoRA")
    assert "routes.0" in outcome.error
    assert not list(server.runs_dir.glob("unroutable-*"))


@pytest.mark.parametrize(
    ("node", "inputs", "message"),
    [
        ("TrainLoRA", {"name": "a name/with a slash"}, "job.name:"),
        ("LoadFluxForTraining", {"model_flavour": "dev"}, "'dev' needs transformer_path, vae_path, clip_l_path, t5_path"),
        ("LoadFluxForTraining", {"other_files": "ae.safetensors"}, "write NAME = PATH, where NAME is one of transformer"),
        (
            "LoadFluxForTraining",
            {"model_flavour": "dev", "checkpoint": "none", "other_files": "vae = /x"},
            "needs transformer_path,",
        ),
        ("LoadFluxForTraining", {"card": "10 GB", "base_model_precision": "int8-quanto"}, "and the preset sets 'nf4-bnb'"),
        ("DatasetBucket", {"folder": "my cat"}, "there is no folder 'my cat' in"),
        ("DatasetBucket", {"caption_strategy": "instanceprompt"}, "instance_prompt and caption_strategy"),
        ("DatasetBucket", {"captions": "lonely"}, "captions go with images"),
        ("ValidationConfig", {"validation_resolution": "100by100"}, "is not a size"),
    ],
)
def test_a_mistake_is_named_on_its_node(
    server: Server, example: Prompt, node: str, inputs: dict[str, str], message: str
) -> None:
    outcome = queue(server.url, change(only(example, "TrainLoRA"), node, **inputs))
    assert (outcome.status, outcome.error_node) == ("error", node)
    assert message in outcome.error


def test_a_shared_workflow_s_missing_file_is_refused_with_the_folder_it_belongs_into(server: Server, example: Prompt) -> None:
    prompt = change(only(example, "TrainLoRA"), "LoadFluxForTraining", vae="gone.safetensors")
    refused = queue(server.url, prompt)
    assert refused.status == "refused"
    assert f"'gone.safetensors' in ComfyUI's vae folder; put it into {server.base_dir / 'models' / 'vae'}" in refused.error


def test_pictures_of_the_graph_become_a_folder(server: Server, example: Prompt) -> None:
    prompt = dataset_graph(example, images=["images", 0], captions="first\nsecond", id="graph")
    empty = {"class_type": "EmptyImage", "inputs": {"width": 96, "height": 64, "batch_size": 2, "color": 255}}
    outcome = queue(server.url, prompt | {"images": empty})
    assert outcome.status == "success", outcome.error
    folder = max((server.output_dir / "flux_lora" / "datasets").iterdir(), key=lambda path: path.stat().st_ctime_ns)
    assert sorted(path.name for path in folder.iterdir()) == ["0000.png", "0000.txt", "0001.png", "0001.txt"]
    assert "80x48                2" in report_of(outcome)
    wrong = change(prompt | {"images": empty}, "DatasetBucket", captions="only one")
    assert "2 images but 1 captions" in queue(server.url, wrong).error


def test_datasets_are_chained_under_names_of_their_own(server: Server, example: Prompt) -> None:
    prompt = dataset_graph(example)
    first = find(prompt, "DatasetBucket")
    second = {"class_type": "DatasetBucket", "inputs": prompt[first]["inputs"] | {"previous_dataset": [first, 0], "repeats": 3}}
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["second", 0]}}
    outcome = queue(server.url, prompt | {"second": second, "shown": shown})
    assert outcome.status == "success", outcome.error
    text = outcome.outputs["shown"]["text"][0]
    assert "id='pictures'" in text and "id='pictures 2'" in text and "repeats=3" in text


def report_of(outcome: Outcome) -> str:
    return outcome.outputs["report"]["text"][0]
