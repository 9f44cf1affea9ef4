"""The pack in a real ComfyUI: imported, listed, documented."""

import json

from comfy_server import PACK_NAME, Server

from trainer_core.job import TrainJob
from trainer_core.specs.adapter import LoraSpec
from trainer_core.specs.base import MODEL_FILE_FIELDS, BaseModelSpec
from trainer_core.specs.dataset import DatasetSpec
from trainer_core.specs.flow import FlowSpec
from trainer_core.specs.optimizer import OptimizerSpec
from trainer_core.specs.publishing import PublishingSpec
from trainer_core.specs.spec import Spec
from trainer_core.specs.training import TrainingSpec
from trainer_core.specs.tread import TreadRoute
from trainer_core.specs.validation import ValidationSpec

NODE_IDS = {
    "LoadFluxForTraining",
    "DatasetBucket",
    "LoRAConfig",
    "TREADRoute",
    "OptimizerConfig",
    "FlowScheduleConfig",
    "ValidationConfig",
    "TrainingOptions",
    "TrainLoRA",
    "LoadTrainedFlux",
    "AdaptiveGuider",
    "TrainingPlan",
    "DatasetCrop",
    "DatasetCaptions",
    "DatasetSampling",
    "CompareCheckpoints",
    "ImportSimpleTunerConfig",
    "ConvertLoRA",
    "ResizeLoRA",
    "MergeLoRAs",
    "ExtractLoRA",
    "PublishingConfig",
}

# where each part of the job has its widgets; TrainLoRA has those of the job itself and two of the training's
PARTS: dict[str, tuple[type[Spec], set[str]]] = {
    "base": (BaseModelSpec, {"LoadFluxForTraining"}),
    "datasets": (DatasetSpec, {"DatasetBucket", "DatasetCrop", "DatasetCaptions", "DatasetSampling"}),
    "lora": (LoraSpec, {"LoRAConfig"}),
    "routes": (TreadRoute, {"TREADRoute"}),
    "optimizer": (OptimizerSpec, {"OptimizerConfig"}),
    "flow": (FlowSpec, {"FlowScheduleConfig"}),
    "validation": (ValidationSpec, {"ValidationConfig"}),
    "training": (TrainingSpec, {"TrainingOptions", "TrainLoRA"}),
    "publishing": (PublishingSpec, {"PublishingConfig"}),
}
OTHER_NAMES = {"seed": "training_seed", "instance_data_dir": "folder", "assistant_lora_path": "assistant_lora"}
OTHER_NAMES |= {field: field.removesuffix("_path") for field in MODEL_FILE_FIELDS}
KNOWN_TO_THE_NODES = {"clip_tokenizer_path", "t5_tokenizer_path", "preview_decoder_path", "device"}


def test_the_pack_is_imported(server: Server) -> None:
    log = server.log()
    assert "IMPORT FAILED" not in log
    assert any(PACK_NAME in line and "seconds" in line for line in log.splitlines())


def test_every_node_is_listed_with_a_tooltip_on_each_widget(server: Server) -> None:
    info = server.get("/object_info")
    ours = {name: node for name, node in info.items() if node["python_module"] == f"custom_nodes.{PACK_NAME}"}
    assert ours.keys() == NODE_IDS
    for name, node in ours.items():
        assert node["category"] == "FLUX LoRA" and node["description"]
        for group in ("required", "optional"):
            for widget, (kind, options) in node["input"].get(group, {}).items():
                if kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                    assert options.get("tooltip"), (name, widget)


def test_a_widget_says_what_its_field_says(server: Server) -> None:
    rank = server.get("/object_info/LoRAConfig")["LoRAConfig"]["input"]["optional"]["lora_rank"]
    assert rank[0] == "INT"
    assert (rank[1]["default"], rank[1]["min"], rank[1]["max"]) == (16, 1, 1024)
    assert json.dumps(rank).count("Rank of the update")


def test_every_field_of_the_job_has_a_widget(server: Server) -> None:
    info = server.get("/object_info")

    def widgets_of(nodes: set[str]) -> set[str]:
        return {name for node in nodes for group in ("required", "optional") for name in info[node]["input"].get(group, {})}

    for part, (spec, nodes) in PARTS.items():
        wanted = {OTHER_NAMES.get(field, field) for field in spec.model_fields.keys() - KNOWN_TO_THE_NODES}
        assert wanted <= widgets_of(nodes), part
    assert TrainJob.model_fields.keys() - PARTS.keys() == {"version", "name", "metadata"}
    assert "name" in widgets_of({"TrainLoRA"})


def test_no_field_of_a_dataset_has_two_widgets(server: Server) -> None:
    info = server.get("/object_info")
    seen: list[str] = []
    for node in PARTS["datasets"][1]:
        names = [name for group in ("required", "optional") for name in info[node]["input"].get(group, {})]
        seen += [name for name in names if name in DatasetSpec.model_fields]
    assert len(seen) == len(set(seen))
