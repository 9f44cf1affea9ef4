"""A prompt saved before a widget was added does not name it: the node then takes the widget's default, which is the field's."""

from typing import Any

from comfy_client import queue
from comfy_server import Server
from graphs import Prompt
from workflow import widget_names

from trainer_core.specs.adapter import LoraSpec
from trainer_core.specs.base import BaseModelSpec
from trainer_core.specs.flow import FlowSpec
from trainer_core.specs.optimizer import OptimizerSpec
from trainer_core.specs.training import TrainingSpec
from trainer_core.specs.tread import TreadRoute
from trainer_core.specs.validation import ValidationSpec

DEFAULTS: dict[str, Any] = {
    "LoadFluxForTraining": BaseModelSpec(),
    "LoRAConfig": LoraSpec(),
    "TREADRoute": (TreadRoute(),),
    "OptimizerConfig": OptimizerSpec(),
    "FlowScheduleConfig": FlowSpec(),
    "ValidationConfig": ValidationSpec(),
    "TrainingOptions": TrainingSpec(),
}


def test_nodes_without_any_widget_named_hand_on_the_defaults_of_the_job(server: Server) -> None:
    prompt: Prompt = {}
    for node in (*DEFAULTS, "DatasetBucket", "DatasetCrop", "DatasetCaptions", "DatasetSampling"):
        prompt[node] = {"class_type": node, "inputs": {}}
        prompt[f"{node} shown"] = {"class_type": "PreviewAny", "inputs": {"source": [node, 0]}}
    options = {"DatasetCrop": "DatasetCaptions", "DatasetCaptions": "DatasetSampling"}
    for node, previous in options.items():
        prompt[node]["inputs"]["previous_options"] = [previous, 0]
    prompt["DatasetBucket"]["inputs"]["options"] = ["DatasetCrop", 0]
    outcome = queue(server.url, prompt)
    assert outcome.status == "success", outcome.error
    for node, expected in DEFAULTS.items():
        assert outcome.outputs[f"{node} shown"]["text"][0] == str(expected), node
    assert "id='pictures'" in outcome.outputs["DatasetBucket shown"]["text"][0]


def test_the_browser_does_not_change_the_seed_of_a_training(server: Server) -> None:
    node = server.get("/object_info/TrainLoRA")["TrainLoRA"]
    assert "training_seed" in widget_names(node) and None not in widget_names(node)


def test_no_widget_is_needed(server: Server) -> None:
    for node in server.get("/object_info").values():
        if node["category"] == "FLUX LoRA":
            kinds = [kind for kind, *_ in node["input"].get("required", {}).values()]
            assert not {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"} & set(kinds), node["name"]
