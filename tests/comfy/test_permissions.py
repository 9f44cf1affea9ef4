"""A workflow is data: it reads where ComfyUI reads, and elsewhere only what the server's owner allows."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from comfy_client import Outcome, queue
from comfy_server import Server
from graphs import Prompt, change, find, only


@pytest.fixture
def strict(server: Server) -> Iterator[Path]:
    """The settings file of the server, which allows nothing."""
    path = server.base_dir / "user" / "flux_lora_studio.json"
    before = path.read_bytes()
    path.write_text("{}", encoding="utf-8")
    yield path
    path.write_bytes(before)


def bucket(example: Prompt, path: str) -> Prompt:
    prompt = change(only(example, "DatasetBucket"), "DatasetBucket", path=path)
    return prompt | {"report": {"class_type": "PreviewAny", "inputs": {"source": [find(prompt, "DatasetBucket"), 2]}}}


def refusal(server: Server, prompt: Prompt, node: str) -> str:
    outcome: Outcome = queue(server.url, prompt)
    assert (outcome.status, outcome.error_node) == ("error", node)
    return outcome.error


@pytest.mark.parametrize("path", ["/etc", "//server/share/pictures", "INPUT/../../secret", "~"])
def test_a_folder_outside_of_comfyui_s_own_is_refused_with_what_would_allow_it(
    server: Server, example: Prompt, strict: Path, path: str
) -> None:
    told = refusal(server, bucket(example, path.replace("INPUT", str(server.base_dir / "input"))), "DatasetBucket")
    assert "lies outside of ComfyUI's input, output and model folders" in told and str(strict) in told


@pytest.mark.parametrize(
    ("path", "said"),
    [("INPUT/a\tb", "control characters"), ("INPUT/" + "x" * 300, "too long"), ("~nobody-has-this-name/a", "home of nobody")],
)
def test_a_path_that_can_be_none_is_refused_in_words(
    server: Server, example: Prompt, strict: Path, path: str, said: str
) -> None:
    assert said in refusal(server, bucket(example, path.replace("INPUT", str(server.base_dir / "input"))), "DatasetBucket")


def test_what_the_owner_allows_is_read(server: Server, example: Prompt, strict: Path, tmp_path: Path) -> None:
    assert "lies outside" in refusal(server, bucket(example, str(tmp_path)), "DatasetBucket")
    strict.write_text(json.dumps({"read_folders": [str(tmp_path)]}), encoding="utf-8")
    assert "no pictures in" in refusal(server, bucket(example, str(tmp_path)), "DatasetBucket")


def test_settings_that_cannot_be_understood_are_named(server: Server, example: Prompt, strict: Path) -> None:
    strict.write_text('{"read_folder": []}', encoding="utf-8")
    told = refusal(server, bucket(example, "/etc"), "DatasetBucket")
    assert str(strict) in told and "read_folder" in told


def test_files_and_the_network_are_refused_before_anything_is_trained(
    server: Server, example: Prompt, strict: Path, tmp_path: Path
) -> None:
    prompt = change(only(example, "TrainLoRA"), "TrainLoRA", name="strange")
    elsewhere = change(prompt, "LoRAConfig", init_lora=str(tmp_path / "lora.safetensors"))
    assert f"init_lora {tmp_path / 'lora.safetensors'} lies outside" in refusal(server, elsewhere, "TrainLoRA")
    hub = {"model_flavour": "dev", "pretrained_model_name_or_path": "a/b", "allow_download": True}
    assert '"allow_network": true' in refusal(server, change(prompt, "LoadFluxForTraining", **hub), "TrainLoRA")
    local = {"model_flavour": "dev", "pretrained_model_name_or_path": str(tmp_path)}
    assert "pretrained_model_name_or_path" in refusal(server, change(prompt, "LoadFluxForTraining", **local), "TrainLoRA")
    assert not list(server.runs_dir.glob("strange-*"))


@pytest.mark.parametrize("node", ["LoadTrainedFlux", "CompareCheckpoints"])
def test_a_run_whose_job_was_put_there_reads_no_more_than_a_workflow_may(
    server: Server, strict: Path, tmp_path: Path, node: str
) -> None:
    run = server.runs_dir / "put-there-1"
    base = {"model_flavour": "dev", "pretrained_model_name_or_path": str(tmp_path / "secret.safetensors")}
    job = {"name": "put-there", "base": base, "datasets": [{"instance_data_dir": str(server.base_dir / "input")}]}
    for name, data in {
        "job.json": job,
        "result.json": {"lora": "put-there.safetensors", "samples": [], "losses": [], "evaluations": [], "steps": 1},
    }.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(json.dumps(data), encoding="utf-8")
    (run / "put-there.safetensors").write_bytes(b"")
    prompt = {"node": {"class_type": node, "inputs": {"run": str(run)}}}
    if node == "LoadTrainedFlux":
        prompt["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["node", 0]}}
    assert f"pretrained_model_name_or_path {tmp_path / 'secret.safetensors'} lies outside" in refusal(server, prompt, node)
    shutil.rmtree(run)


@pytest.mark.parametrize("node", ["LoadTrainedFlux", "CompareCheckpoints"])
def test_a_run_that_a_request_makes_up_is_none(server: Server, tmp_path: Path, node: str) -> None:
    (tmp_path / "job.json").write_text("{}", encoding="utf-8")
    prompt = {"node": {"class_type": node, "inputs": {"run": str(tmp_path)}}}
    if node == "LoadTrainedFlux":
        prompt["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["node", 0]}}
    assert f"{tmp_path} holds no run" in refusal(server, prompt, node)
