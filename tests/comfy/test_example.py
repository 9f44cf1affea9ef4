"""From pictures to a picture with the trained LoRA, on one canvas, as the example workflow ships."""

import io
import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from comfy_client import Outcome, queue
from comfy_server import Server
from graphs import EXAMPLE, EXAMPLES, STEPS, Prompt, change, find, load_workflow, only, picture
from PIL import Image, ImageChops
from safetensors import safe_open
from workflow import to_prompt

from trainer_core.compare import Base, LoraOn, sample_shots, setup_of
from trainer_core.flux.vae import load_vae
from trainer_core.measure import encode
from trainer_core.run_dir import RunDir
from trainer_core.saved import find_lora
from trainer_core.validation.render import to_png
from trainer_core.validation.shots import Canvas, Shot


def run_dir_of(server: Server, name: str) -> Path:
    return next(server.runs_dir.glob(f"{name}-*"))


def saved(server: Server, prompt: Prompt, node_id: str = "") -> Image.Image:
    """The first picture that the graph saves."""
    outcome = queue(server.url, prompt)
    assert outcome.status == "success", outcome.error
    return picture(server.output_dir, outcome.outputs[node_id or find(prompt, "SaveImage")]["images"][0])


def test_the_example_runs_to_saved_pictures(server: Server, example: Prompt, trained: Outcome) -> None:
    images = trained.outputs[find(example, "SaveImage")]["images"]
    assert len(images) == 4
    assert picture(server.output_dir, images[0]).size == (64, 64)
    assert trained.previews >= 2 * (3 + 1)  # of the base's picture and the LoRA's: three while it is made, and itself
    assert trained.of("progress")[-1]["max"] > 0


def test_every_key_of_the_lora_is_applied(server: Server, trained: Outcome) -> None:
    log = server.log()
    assert "lora key not loaded" not in log
    assert "NOT LOADED" not in log


def test_the_train_node_shows_before_and_after_and_the_loss(server: Server, example: Prompt, trained: Outcome) -> None:
    names = [image["filename"] for image in trained.outputs[find(example, "TrainLoRA")]["images"]]
    assert names == ["before_after.png", "loss_curve.png"]


def test_the_lora_is_offered_to_comfyui_and_carries_the_workflow(server: Server, trained: Outcome) -> None:
    lora = next((server.output_dir / "loras").glob("pico-demo-*.safetensors"))
    with safe_open(lora, framework="np") as file:
        header = file.metadata()
    assert json.loads(header["workflow"]) == load_workflow(EXAMPLE)
    assert "TrainLoRA" in header["prompt"]
    offered = server.get("/object_info/LoraLoaderModelOnly")["LoraLoaderModelOnly"]["input"]["required"]["lora_name"][0]
    assert lora.name in offered


def test_a_finished_job_queued_again_trains_nothing(forgetful: Server, example: Prompt, trained: Outcome) -> None:
    events = run_dir_of(forgetful, "pico-demo") / "events.jsonl"
    before = events.read_bytes()
    outcome = queue(forgetful.url, only(example, "TrainLoRA"))
    assert outcome.status == "success", outcome.error
    assert outcome.of("execution_cached")[0]["nodes"] == []
    assert outcome.seconds < 5
    assert events.read_bytes() == before


def test_comfyui_makes_the_picture_that_the_trainer_made(server: Server, example: Prompt, trained: Outcome) -> None:
    prompt = change(only(example, "SaveImage"), "RandomNoise", noise_seed=0)
    prompt = change(prompt, "EmptySD3LatentImage", batch_size=1)
    prompt = change(prompt, "AdaptiveGuider", threshold=1.0)
    ours = Image.open(run_dir_of(server, "pico-demo") / "samples" / f"step-{STEPS:06d}" / "00.png").convert("RGB")
    difference = np.abs(np.asarray(saved(server, prompt), dtype=float) - np.asarray(ours, dtype=float))
    assert difference.mean() < 0.5, difference.mean()


@pytest.mark.parametrize(
    ("guidance", "cfg", "negative", "size"),
    [(2.5, 1.0, "", (64, 64)), (1.0, 4.5, "", (64, 64)), (3.5, 3.0, "a red apple", (96, 64))],
)
def test_both_samplers_make_the_same_picture(
    server: Server, example: Prompt, trained: Outcome, guidance: float, cfg: float, negative: str, size: tuple[int, int]
) -> None:
    """The same noise, schedule, guidance, CFG, negative prompt and size; 2/255 is what issue 7 allows in the mean."""
    prompt = change(only(example, "SaveImage"), "RandomNoise", noise_seed=5)
    prompt = change(prompt, "EmptySD3LatentImage", batch_size=1, width=size[0], height=size[1])
    prompt = change(prompt, "AdaptiveGuider", threshold=1.0, cfg=cfg)
    prompt = change(prompt, "FluxGuidance", guidance=guidance)
    guider = prompt[find(prompt, "AdaptiveGuider")]["inputs"]
    sources = [prompt[guider[side][0]]["inputs"]["conditioning"][0] for side in ("positive", "negative")]
    prompt[sources[1]]["inputs"]["text"] = negative
    asked = Shot("", prompt[sources[0]]["inputs"]["text"], negative, Canvas(*size, 5))
    ours = trainers_picture(server, asked, guidance=guidance, guidance_real=cfg)
    difference = np.abs(np.asarray(saved(server, prompt), dtype=float) - np.asarray(ours, dtype=float))
    assert difference.mean() < 0.5, difference.mean()


def trainers_picture(server: Server, shot: Shot, **settings: float) -> Image.Image:
    """What the trainer's sampler makes of the example's LoRA."""
    run_dir = RunDir(run_dir_of(server, "pico-demo"))
    setup = setup_of(run_dir)
    setup = replace(setup, shots=(shot,), sampler=replace(setup.sampler, **settings))
    base, caches = Base(setup), encode(setup, server.output_dir / "flux_lora" / "cache")
    with LoraOn(base.transformer, setup, find_lora(run_dir, "final"), 1.0), base.picturing():
        (latent,) = sample_shots(setup, base.transformer, caches)
    vae = load_vae(setup.files.vae, setup.device)
    return Image.open(io.BytesIO(to_png(vae.decode(latent.unsqueeze(0))[0]))).convert("RGB")


def test_strength_zero_is_the_base_and_strength_one_is_not(server: Server, example: Prompt, trained: Outcome) -> None:
    prompt = change(only(example, "SaveImage"), "BasicScheduler", steps=4)
    run = LoraRun(prompt)
    lora = next((server.output_dir / "loras").glob("pico-demo-*.safetensors")).name
    with_lora, without = saved(server, run.strength(1.0)), saved(server, run.strength(0.0))
    assert ImageChops.difference(with_lora, without).getbbox() is not None
    assert saved(server, run.by_comfyui(lora, 0.0)).tobytes() == without.tobytes()
    assert saved(server, run.by_comfyui(lora, 1.0)).tobytes() == with_lora.tobytes()


def test_a_reference_latent_changes_the_picture_and_each_in_its_own_way(
    server: Server, example: Prompt, trained: Outcome
) -> None:
    """That ComfyUI and the trainer make the same of one: test_forward.py."""
    plain = change(change(only(example, "SaveImage"), "BasicScheduler", steps=4), "EmptySD3LatentImage", batch_size=1)
    pictures = [saved(server, plain), *(saved(server, with_reference(plain, colour)) for colour in (0xFF0000, 0x0000FF))]
    assert all(ImageChops.difference(*pair).getbbox() is not None for pair in combinations(pictures, 2))


def with_reference(prompt: Prompt, colour: int) -> Prompt:
    """The graph with a picture of one colour as ReferenceLatent before its guider, as in the template on editing."""
    guider = find(prompt, "AdaptiveGuider")
    sides = {side: prompt[guider]["inputs"][side] for side in ("positive", "negative")}
    prompt = change(prompt, "AdaptiveGuider", **{side: [side, 0] for side in sides})
    vae, size = [find(prompt, "LoadTrainedFlux"), 2], {"width": 64, "height": 64, "batch_size": 1}
    prompt["colour"] = {"class_type": "EmptyImage", "inputs": {**size, "color": colour}}
    prompt["latent"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["colour", 0], "vae": vae}}
    for side, conditioning in sides.items():
        inputs = {"conditioning": conditioning, "latent": ["latent", 0]}
        prompt[side] = {"class_type": "ReferenceLatent", "inputs": inputs}
    return prompt


class LoraRun:
    """Variants of a graph that differ in how the LoRA comes onto the model."""

    def __init__(self, prompt: Prompt):
        self._prompt = prompt

    def strength(self, strength: float) -> Prompt:
        return change(self._prompt, "LoadTrainedFlux", strength=strength)

    def by_comfyui(self, lora: str, strength: float) -> Prompt:
        """The base, and ComfyUI's own LoRA loader behind it."""
        prompt = self.strength(0.0)
        model = [find(prompt, "LoadTrainedFlux"), 0]
        prompt = change(change(prompt, "AdaptiveGuider", model=["lora", 0]), "BasicScheduler", model=["lora", 0])
        inputs = {"model": model, "lora_name": lora, "strength_model": strength}
        return prompt | {"lora": {"class_type": "LoraLoaderModelOnly", "inputs": inputs}}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_shipped_workflow_fits_the_nodes_and_has_a_square_thumbnail(server: Server, path: Path) -> None:
    workflow = load_workflow(path)
    to_prompt(workflow, server.get("/object_info"))
    ends = {link[0]: (link[1], link[3]) for link in workflow["links"]}
    for node in workflow["nodes"]:
        for entry in node["inputs"]:
            assert entry["link"] is None or ends[entry["link"]][1] == node["id"]
        for output in node["outputs"]:
            assert all(ends[link][0] == node["id"] for link in output["links"] or [])
    with Image.open(path.with_suffix(".jpg")) as thumbnail:
        assert thumbnail.width == thumbnail.height
