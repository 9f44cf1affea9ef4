"""The tools on LoRA files as nodes: what each makes does in pico's forward pass what it was made from does.

And what ComfyUI's model library is told of a LoRA.
"""

import base64
import io
import shutil
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from comfy_client import Outcome, queue
from comfy_server import Server
from forward_parity import deltas, difference, forward
from graphs import TRIGGER, Prompt, change, find, only
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_permissions import refusal, strict  # noqa: F401
from torch import Tensor

from trainer_core.flux.files import PICO_FILES


def made(server: Server, prompt: Prompt, name: str) -> tuple[Path, dict[str, str], str]:
    """The LoRA that the graph's tool made under this name, its metadata, and its report."""
    (tool,) = (node for node, one in prompt.items() if one["inputs"].get("save_as") == name)
    outcome = queue(server.url, prompt | {"shown": {"class_type": "PreviewAny", "inputs": {"source": [tool, 2]}}})
    assert outcome.status == "success", outcome.error
    path = server.output_dir / "loras" / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        return path, file.metadata(), outcome.outputs["shown"]["text"][0]


def parity(changes: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """How far pico's predictions with these changes are from those with the expected ones, as a share of what those change."""
    base, meant = forward({}), forward(expected)
    assert difference(base, meant) > 1e-4
    return difference(forward(changes) - base, meant - base)


def of_rank(change: Tensor, rank: int) -> Tensor:
    """The nearest change of that rank."""
    left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
    return (left[:, :rank] * values[:rank] @ right[:rank]).float()


def tool(node: str, **inputs: object) -> Prompt:
    return {"tool": {"class_type": node, "inputs": inputs}}


def trained_path(example: Prompt) -> tuple[Prompt, list]:
    """The example's training, finished already, and the path that it hands on."""
    train = only(example, "TrainLoRA")
    return train, [find(train, "TrainLoRA"), 1]


def test_a_trained_lora_is_converted_and_merged_in_the_graph(server: Server, example: Prompt, trained: Outcome) -> None:
    train, path = trained_path(example)
    converting = train | tool("ConvertLoRA", lora_path=path, to="kohya", save_as="tools/kohya")
    source = next((server.output_dir / "loras").glob("pico-demo-*.safetensors"))
    converted, metadata, report = made(server, converting, "tools/kohya")
    assert all(key.startswith("lora_unet_") for key in load_file(converted))
    assert parity(deltas(converted), deltas(source)) < 1e-2
    assert metadata["modelspec.title"] == "pico-demo" and "workflow" in metadata and "differs from what was meant by" in report
    merging = train | tool(
        "MergeLoRAs",
        lora_1_path=path,
        lora_2="tools/kohya.safetensors",
        weight_2=-0.5,
        precision="fp32",
        save_as="tools/half",
    )
    merged, metadata, _ = made(server, merging, "tools/half")
    assert parity(deltas(merged), {layer: delta / 2 for layer, delta in deltas(source).items()}) < 1e-2
    assert metadata["modelspec.merged_from"] == "pico-demo, pico-demo"


@pytest.mark.slow
def test_resize_in_the_graph(server: Server, example: Prompt, trained: Outcome) -> None:
    train, path = trained_path(example)
    resizing = train | tool("ResizeLoRA", lora_path=path, rank=2, precision="fp32", save_as="tools/small")
    small, _, _ = made(server, resizing, "tools/small")
    before = small.stat().st_mtime_ns
    server.forget()
    made(server, resizing, "tools/small")
    assert small.stat().st_mtime_ns == before
    assert {len(tensor) for key, tensor in load_file(small).items() if key.endswith("lora_A.weight")} == {2}
    source = next((server.output_dir / "loras").glob("pico-demo-*.safetensors"))
    assert parity(deltas(small), {layer: of_rank(delta, 2) for layer, delta in deltas(source).items()}) < 1e-2


@pytest.mark.slow
def test_extract_in_the_graph(server: Server) -> None:
    models = server.base_dir / "models" / "diffusion_models"
    models.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(PICO_FILES.transformer, models / "before.safetensors")
    weights = load_file(PICO_FILES.transformer)
    (name,) = (key for key in weights if key.endswith("img_in.weight"))
    trained = torch.zeros_like(weights[name])
    trained[::2] = 0.125
    save_file(weights | {name: weights[name] + trained}, models / "after.safetensors")
    try:
        extracting = tool(
            "ExtractLoRA", tuned="after.safetensors", base_model="before.safetensors", rank=1, save_as="tools/taken"
        )
        taken, _, _ = made(server, extracting, "tools/taken")
    finally:
        (models / "before.safetensors").unlink()
        (models / "after.safetensors").unlink()
    assert sorted(load_file(taken)) == [f"transformer.x_embedder.{end}" for end in ("alpha", "lora_A.weight", "lora_B.weight")]
    assert parity(deltas(taken), {"x_embedder": trained}) < 1e-2


def test_what_a_tool_may_not_read_or_write_is_refused(
    server: Server,
    example: Prompt,
    trained: Outcome,
    strict: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    path = next((server.output_dir / "loras").glob("pico-demo-*.safetensors"))
    (server.output_dir / "loras" / "taken.safetensors").write_bytes(b"mine")
    outside = tool("ConvertLoRA", lora_path=str(tmp_path / "x.safetensors"), to="kohya", save_as="x")
    assert f"lora_path {tmp_path / 'x.safetensors'} lies outside" in refusal(server, outside, "ConvertLoRA")
    leaving = tool("ConvertLoRA", lora=path.name, to="kohya", save_as="../../x")
    assert "leaves the LoRA folder" in refusal(server, leaving, "ConvertLoRA")
    of_a_run = tool("ConvertLoRA", lora=path.name, to="kohya", save_as=path.stem)
    assert "is the name of a run" in refusal(server, of_a_run, "ConvertLoRA")
    one = tool("MergeLoRAs", lora_1=path.name, save_as="x")
    assert "choose at least two LoRAs" in refusal(server, one, "MergeLoRAs")
    nothing = tool("ExtractLoRA", save_as="x")
    assert "ExtractLoRA: tuned is 'none'" in refusal(server, nothing, "ExtractLoRA")


def test_the_network_is_used_for_publishing_only_where_the_owner_allows_it(
    server: Server,
    example: Prompt,
    strict: Path,  # noqa: F811
) -> None:
    prompt = change(only(example, "TrainLoRA"), "TrainLoRA", name="published", publishing=["card", 0])
    for wish in ({"push_to_hub": True}, {"webhook_url": "http://127.0.0.1:9/hook"}):
        wishing = prompt | {"card": {"class_type": "PublishingConfig", "inputs": wish}}
        told = refusal(server, wishing, "TrainLoRA")
        assert next(iter(wish)) in told and '"allow_network": true' in told
    assert not list(server.runs_dir.glob("published-*"))


def test_the_model_library_shows_title_trigger_picture_and_resolution(server: Server, trained: Outcome) -> None:
    path = next((server.output_dir / "loras").glob("pico-demo-*.safetensors"))
    shown = server.get(f"/view_metadata/loras?filename={urllib.parse.quote(path.name)}")
    assert shown["modelspec.title"] == "pico-demo" and shown["modelspec.resolution"] == "64x64"
    assert shown["modelspec.architecture"] == "flux-1-pico/lora" and shown["modelspec.license"] == "apache-2.0"
    assert shown["modelspec.trigger_phrase"] == TRIGGER and shown["modelspec.usage_hint"].startswith(f"say {TRIGGER}, 64x64, ")
    picture = base64.b64decode(shown["modelspec.thumbnail"].partition(",")[2])
    assert Image.open(io.BytesIO(picture)).size == (256, 256)
