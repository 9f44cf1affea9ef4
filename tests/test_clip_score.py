"""CLIP score and likeness, by a small CLIP of random weights: the numbers are what the formulas say, and they are kept."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast

from support import job_data, run_in_process
from trainer_core.compare import compare
from trainer_core.data.images import load_rgb
from trainer_core.errors import JobError
from trainer_core.job_file import parse_job
from trainer_core.run_dir import RunDir
from trainer_core.setup import prepare
from trainer_core.validation.clip_score import ClipJudge

CPU = torch.device("cpu")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["<|startoftext|>", "<|endoftext|>", *(f"{letter}</w>" for letter in LETTERS), *LETTERS]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A CLIP folder as the hub has them, two layers deep."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = small | tokens | {"max_position_embeddings": 16}
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=16)
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def data(pictures, clip) -> dict:
    validation = {
        "validation_prompts": ["a ball", "a cat"],
        "num_validation_images": 4,
        "validation_num_inference_steps": 1,
        "evaluation_type": "clip",
        "pretrained_evaluation_model_name_or_path": str(clip),
    }
    return job_data(pictures, validation=validation)


def test_the_numbers_are_the_cosines_of_transformers_own_clip(clip, data, tmp_path):
    samples = prepare(parse_job(data)).samples
    judge = ClipJudge(str(clip), CPU, samples, tmp_path, allow_download=False)
    picture = load_rgb(samples[0].path)
    (score,) = judge.judge([picture], ["a ball"])
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    with torch.no_grad():
        outputs = model(**processor(text=["a ball"], images=[picture], return_tensors="pt"))
    cosine = (outputs.logits_per_image / model.logit_scale.exp()).item()
    assert score.clip_score == pytest.approx(100 * max(0.0, cosine), abs=1e-3)
    own = [judge.judge([load_rgb(sample.path)], ["a ball"])[0].likeness for sample in samples]
    assert 0 < max(own) <= 100
    [kept] = (tmp_path / "likeness").iterdir()
    data = bytearray(kept.read_bytes())
    data[-1] ^= 0x40
    kept.write_bytes(data)
    again = ClipJudge(str(clip), CPU, samples, tmp_path, allow_download=False)
    assert [again.judge([load_rgb(sample.path)], ["a ball"])[0].likeness for sample in samples] == own


def test_every_picture_of_a_run_is_scored_once_and_the_scores_stay(data, tmp_path, cache):
    data["validation"]["validation_step_interval"] = 2
    data["training"]["max_train_steps"] = 4
    result = run_in_process(parse_job(data), tmp_path, cache)
    steps = data["training"]["max_train_steps"]
    wanted = [(step, f"step-{step:06d}/{name}") for step in range(0, steps + 1, 2) for name in ("00", "01")]
    assert [(score["step"], score["picture"]) for score in result["scores"]] == wanted
    assert {score["prompt"] for score in result["scores"]} == {"a ball", "a cat"}
    assert len({score["clip_score"] for score in result["scores"]}) > 2
    lines = (Path(result["run_dir"]) / "events.jsonl").read_text(encoding="utf-8").splitlines()
    told = [event for event in map(json.loads, lines) if event["event"] == "score"]
    assert [event["clip_score"] for event in told] == [score["clip_score"] for score in result["scores"]]


def test_a_missing_clip_is_told_before_anything_is_loaded(data, clip, tmp_path):
    with pytest.raises(JobError, match="needs pretrained_evaluation_model_name_or_path"):
        parse_job(data | {"validation": data["validation"] | {"pretrained_evaluation_model_name_or_path": ""}})
    data["validation"]["pretrained_evaluation_model_name_or_path"] = str(tmp_path / "none")
    with pytest.raises(JobError, match="no CLIP could be read from"):
        prepare(parse_job(data))
    shutil.copytree(clip, tmp_path / "none")
    (tmp_path / "none" / "model.safetensors").unlink()
    with pytest.raises(JobError, match=r"it has no model\.safetensors"):
        prepare(parse_job(data))


def test_likeness_is_higher_for_the_training_pictures_than_for_noise(clip, data, tmp_path):
    samples = prepare(parse_job(data)).samples
    judge = ClipJudge(str(clip), CPU, samples, tmp_path, allow_download=False)
    noise = Image.effect_noise((64, 64), 100).convert("RGB")
    one, other = judge.judge([load_rgb(samples[0].path), noise], ["a", "a"])
    assert one.likeness > other.likeness


def test_scores_stand_under_the_pictures_of_a_comparison(data, tmp_path, cache):
    training = data["training"] | {"max_train_steps": 2}
    result = run_in_process(parse_job(data | {"training": training}), tmp_path, cache)
    report = compare(RunDir(Path(result["run_dir"])), ["final"], [1.0], tmp_path / "grid.png", cache)
    base, final = report["rows"]
    measured = {score["picture"]: (score["clip_score"], score["likeness"]) for score in result["scores"]}
    for row, step in ((base, 0), (final, 2)):
        for score, name in zip(row["scores"], ("00", "01"), strict=True):
            expected = pytest.approx(measured[f"step-{step:06d}/{name}"], abs=0.05)
            assert (score["clip_score"], score["likeness"]) == expected
    assert report["text"].count("CLIP score") == 2
    grid = Image.open(report["grid"]).convert("RGB")
    under = grid.crop((190, 56 + 128, 190 + 128, 56 + 128 + 16))  # the line between the first picture and the next row
    assert len(under.getcolors()) > 1
