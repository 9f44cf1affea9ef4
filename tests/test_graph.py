"""Workflows of ComfyUI's become jobs without ComfyUI; in a real ComfyUI, tests/comfy/test_export.py compares the two."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from support import ROOT, Command, make_pictures
from trainer_core.errors import JobError
from trainer_core.graph import parse_graph
from trainer_core.graph_job import MAKERS, ComfyFolders, export_job
from trainer_core.job import TrainJob

EXAMPLE = ROOT / "example_workflows" / "Train a LoRA and test it.json"
PROMPT: dict[str, Any] = {  # the form that ComfyUI runs
    "1": {"class_type": "LoadFluxForTraining", "inputs": {"model_flavour": "pico", "mixed_precision": "no"}},
    "2": {"class_type": "DatasetBucket", "inputs": {"path": "/first", "resolution": "48, 64", "options": ["8", 0]}},
    "3": {"class_type": "DatasetBucket", "inputs": {"path": "/second/first", "previous_dataset": ["2", 0], "repeats": 2}},
    "4": {"class_type": "TREADRoute", "inputs": {"start_layer_idx": 1, "end_layer_idx": 2}},
    "5": {"class_type": "TREADRoute", "inputs": {"start_layer_idx": 3, "end_layer_idx": 4, "previous_routes": ["4", 0]}},
    "6": {"class_type": "ValidationConfig", "inputs": {"validation_prompts": "a dog\n\na cat\n", "num_validation_images": 4}},
    "7": {"class_type": "TrainingOptions", "inputs": {"train_batch_size": ["9", 0], "gradient_checkpointing": False}},
    "8": {"class_type": "DatasetCrop", "inputs": {"crop": True, "crop_aspect": "random", "crop_aspect_buckets": "1\n1.5: 2"}},
    "9": {"class_type": "PrimitiveInt", "inputs": {"value": 3}},
    "10": {
        "class_type": "TrainLoRA",
        "inputs": {
            "model": ["1", 0],
            "dataset": ["3", 0],
            "name": "two",
            "max_train_steps": 5,
            "training_seed": 9,
            "routes": ["5", 0],
            "validation": ["6", 0],
            "options": ["7", 0],
        },
    },
    "11": {"class_type": "PreviewAny", "inputs": {"source": ["10", 1]}},
}


def job_of(data: Any, **folders: Any) -> TrainJob:
    return export_job(parse_graph(data, "it"), ComfyFolders(**folders))


def changed(node: str, **inputs: Any) -> dict[str, Any]:
    prompt = copy.deepcopy(PROMPT)
    prompt[node]["inputs"] |= inputs
    return prompt


def test_every_node_of_a_prompt_is_in_the_job() -> None:
    job = job_of(PROMPT)
    assert (job.name, job.training.max_train_steps, job.training.seed, job.training.train_batch_size) == ("two", 5, 9, 3)
    assert not job.training.gradient_checkpointing and job.base.mixed_precision == "no"
    first, second = job.datasets
    assert (first.id, first.instance_data_dir, first.resolution) == ("first", "/first", (48.0, 64.0))
    assert (first.crop_aspect, first.crop_aspect_buckets) == ("random", ("1", "1.5: 2"))
    assert (second.id, second.instance_data_dir, second.repeats) == ("first 2", "/second/first", 2)
    assert [route.start_layer_idx for route in job.routes] == [1, 3]
    assert job.validation.validation_prompts == ("a dog", "a cat")


def saved(*, link: int | None = 7, mode: int = 0, between: dict[str, Any] | None = None) -> dict[str, Any]:
    """The form that ComfyUI saves: a base, a dataset, a Train LoRA, and routes through one node more."""

    def node(number: int, kind: str, values: dict[str, Any], wires: dict[str, Any], **more: Any) -> dict[str, Any]:
        inputs = [{"name": name, "type": "T", "link": None, "widget": {"name": name}} for name in values]
        inputs += [
            {"name": name, "type": "TREAD_ROUTES" if "rout" in name else "T", "link": wire} for name, wire in wires.items()
        ]
        return {"id": number, "type": kind, "inputs": inputs, "widgets_values": list(values.values()), **more}

    route = {"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": 2}
    outputs = [{"type": "TREAD_ROUTES"}]
    nodes = [
        node(1, "LoadFluxForTraining", {"model_flavour": "pico"}, {}),
        node(2, "DatasetBucket", {"path": "/first"}, {}),
        node(3, "TREADRoute", route, {"previous_routes": None}, outputs=outputs),
        node(
            4,
            "TREADRoute",
            route | {"start_layer_idx": 3, "end_layer_idx": 4},
            {"previous_routes": 6},
            outputs=outputs,
            mode=mode,
        ),
        node(5, "TrainLoRA", {"name": "saved", "max_train_steps": 5}, {"model": 1, "dataset": 2, "routes": link}),
        between or node(6, "Reroute", {}, {"": 8}),
    ]
    links = [[1, 1, 0, 5, 0, "T"], [2, 2, 0, 5, 1, "T"], [6, 3, 0, 4, 3, "T"], [7, 6, 0, 5, 4, "T"], [8, 4, 0, 6, 0, "T"]]
    return {"nodes": nodes, "links": links, "version": 0.4}


def starts(data: dict[str, Any]) -> list[int]:
    return [route.start_layer_idx for route in job_of(data).routes]


def test_a_saved_workflow_is_read_through_reroutes_past_bypassed_nodes_and_without_muted_ones() -> None:
    assert starts(saved()) == [1, 3]
    assert starts(saved(mode=4)) == [1]
    assert starts(saved(mode=2)) == []
    assert starts(saved(link=None)) == []


def test_what_the_browser_adds_behind_the_widgets_is_passed_over_and_too_few_values_are_an_error() -> None:
    data = saved()
    data["nodes"][4]["widgets_values"].append("a panel's own")
    assert job_of(data).training.max_train_steps == 5
    data["nodes"][4]["widgets_values"] = ["saved"]
    with pytest.raises(JobError, match=r"node 5 \(TrainLoRA\): 2 widgets and 1 values"):
        job_of(data)


def test_a_primitive_s_value_is_taken() -> None:
    data = saved()
    data["nodes"].append({"id": 9, "type": "PrimitiveNode", "widgets_values": [77, "fixed"], "outputs": [{"type": "INT"}]})
    data["links"].append([9, 9, 0, 5, 1, "INT"])
    data["nodes"][4]["inputs"][1]["link"] = 9
    assert job_of(data).training.max_train_steps == 77


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (changed("2", images=["11", 0]), "images come along a wire and exist only while ComfyUI runs"),
        (changed("10", name=["11", 0]), "input name comes from PreviewAny, which only ComfyUI can run"),
        (changed("10", model="nothing"), "has nothing on its input model"),
        ({**PROMPT, "12": PROMPT["10"]}, "several Train LoRA nodes; choose one with --node: 10, 12"),
        ({name: node for name, node in PROMPT.items() if name not in ("10", "11")}, "has no Train LoRA node"),
        (changed("1", model_flavour="dev", transformer="flux.safetensors"), "say where ComfyUI's models are"),
        (changed("8", crop_aspect_buckets="wide"), "'wide' is no aspect"),
        (changed("3", options=["8", 0], crop=True), "DatasetBucket: crop came along the chain already"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_the_mend(prompt: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message.replace("(", r"\(")):
        job_of(prompt)


def test_model_files_are_found_below_comfyui_s_folders(tmp_path: Path) -> None:
    comfyui, elsewhere = tmp_path / "ComfyUI", tmp_path / "elsewhere"
    names = {"transformer": "flux.safetensors", "vae": "ae.safetensors", "clip_l": "l.safetensors", "t5": "sub/t5.gguf"}
    places = ("models/unet/flux.safetensors", "models/vae/ae.safetensors", "models/clip/l.safetensors")
    for path in (*(comfyui / place for place in places), elsewhere / "text_encoders" / "sub" / "t5.gguf"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (comfyui / "comfy" / "sd1_tokenizer").mkdir(parents=True)
    base = job_of(changed("1", model_flavour="dev", **names), comfyui=comfyui, models=(elsewhere,)).base
    assert base.transformer_path == str(comfyui / "models" / "unet" / "flux.safetensors")
    assert base.t5_path == str(elsewhere / "text_encoders" / "sub" / "t5.gguf")
    assert base.clip_tokenizer_path == str(comfyui / "comfy" / "sd1_tokenizer")
    with pytest.raises(JobError, match=r"there is no 'other.safetensors' in .*unet.*; correct --models"):
        job_of(changed("1", model_flavour="dev", **names | {"transformer": "other.safetensors"}), comfyui=comfyui)


def test_a_name_longer_than_any_is_not_there(tmp_path: Path) -> None:
    """Fuzzing found it: the system refuses to look for one."""
    (tmp_path / "input").mkdir()
    with pytest.raises(JobError, match=r"there is no folder '9{300}'"):
        job_of(changed("2", path="", folder="9" * 300), comfyui=tmp_path)
    with pytest.raises(JobError, match=r"there is no '9{300}'"):
        job_of(changed("1", model_flavour="dev", transformer="9" * 300), comfyui=tmp_path)


def test_a_workflow_runs_headless(tmp_path: Path) -> None:
    workflow = changed("2", path=str(make_pictures(tmp_path / "a", 3)))
    workflow["3"]["inputs"]["path"] = str(make_pictures(tmp_path / "b", 3))
    workflow["6"]["inputs"] = {"num_validation_images": 0}
    (tmp_path / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
    done = Command("run", tmp_path / "workflow.json", "--out", tmp_path / "runs")
    assert done.code == 0, done.stderr
    assert done.report["steps"] == 5 and Path(done.report["lora"]).is_file()
    exported = Command("export-job", tmp_path / "workflow.json", "--out", tmp_path / "job.json")
    assert exported.report["job"] == json.loads((Path(done.report["run_dir"]) / "job.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("field", "wish"),
    [("push_to_hub", {"push_to_hub": True, "hub_model_id": "me/cat"}), ("webhook_url", {"webhook_url": "http://127.0.0.1:9/"})],
)
def test_a_workflow_reaches_the_network_only_where_whoever_runs_it_says_so(tmp_path: Path, field: str, wish: Any) -> None:
    workflow = changed("10", publishing=["20", 0]) | {"20": {"class_type": "PublishingConfig", "inputs": wish}}
    (tmp_path / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
    refused = Command("check", tmp_path / "workflow.json")
    assert refused.code == 2 and f"{field} is on, and a workflow may be a stranger's" in refused.stderr
    allowed = Command("check", tmp_path / "workflow.json", "--allow-network")
    assert allowed.code == 2 and "/first" in allowed.stderr, "it went on, to a folder that is not there"
    assert Command("export-job", tmp_path / "workflow.json", "--out", tmp_path / "job.json").code == 0
    assert "/first" in Command("check", tmp_path / "job.json").stderr, "a job is one's own"


@pytest.mark.parametrize("path", sorted((ROOT / "example_workflows").glob("*.json")), ids=lambda path: path.stem)
def test_a_shipped_workflow_is_a_job(path: Path) -> None:
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    for trainer in [node["id"] for node in nodes if node["type"] == "TrainLoRA"]:
        done = Command("export-job", path, "--node", trainer)
        assert done.code == 0 and done.report["job"]["base"]["model_flavour"] == "pico"


def test_a_job_is_no_workflow_and_other_json_is_neither(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"name": "x"}', encoding="utf-8")
    assert "job.datasets: is missing" in Command("run", tmp_path / "job.json").stderr
    assert "is no workflow" in Command("export-job", tmp_path / "job.json").stderr


NODES = json.loads((ROOT / "docs" / "nodes.json").read_text(encoding="utf-8"))  # as a real ComfyUI has them


def test_every_node_that_feeds_train_lora_can_be_exported() -> None:
    wires = {
        entry["type"] for node in ("TrainLoRA", "DatasetBucket") for entry in NODES[node]["inputs"] if "default" not in entry
    }
    feeding = {name for name, node in NODES.items() if wires & {entry["type"] for entry in node["outputs"]} - {"IMAGE"}}
    assert feeding == set(MAKERS)


def test_a_widget_that_a_prompt_leaves_out_stands_at_its_node_s_default() -> None:
    prompt = {name: {"class_type": name, "inputs": {}} for name in MAKERS if name != "ImportSimpleTunerConfig"}
    wires = {"lora": "LoRAConfig", "routes": "TREADRoute", "optimizer": "OptimizerConfig", "flow": "FlowScheduleConfig"}
    wires |= {"validation": "ValidationConfig", "options": "TrainingOptions", "model": "LoadFluxForTraining"}
    trainer = {name: [node, 0] for name, node in (wires | {"dataset": "DatasetBucket"}).items()}
    prompt["TrainLoRA"] = {"class_type": "TrainLoRA", "inputs": trainer}
    prompt["DatasetBucket"]["inputs"]["options"] = ["DatasetCrop", 0]
    prompt["DatasetCrop"]["inputs"]["previous_options"] = ["DatasetCaptions", 0]
    prompt["DatasetCaptions"]["inputs"]["previous_options"] = ["DatasetSampling", 0]
    full = copy.deepcopy(prompt)
    for name, node in full.items():
        widgets = {entry["name"]: entry["default"] for entry in NODES[name]["inputs"] if "default" in entry}
        node["inputs"] = widgets | node["inputs"]
    assert job_of(prompt) == job_of(full)
