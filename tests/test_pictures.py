"""The run's pictures: what is asked for, how it is sampled, and what is kept."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from support import job_data, run_in_process, silent
from trainer_core.data.encode import encode_captions, open_caches
from trainer_core.errors import JobError
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.flux.load import load_transformer
from trainer_core.flux.text import EncoderFormat
from trainer_core.guidance import guide, similarity
from trainer_core.job_file import parse_job
from trainer_core.run_dir import RunDir
from trainer_core.setup import prepare
from trainer_core.specs.prompts import parse_library
from trainer_core.specs.validation import ValidationSpec
from trainer_core.validation.sample import Encoded, SamplerSettings, sample_latents
from trainer_core.validation.shots import Canvas, make_shots

PICO = FLAVOURS["pico"]


def library(**entries) -> str:
    return json.dumps(entries)


# What is asked for


def test_a_library_names_its_pictures_and_may_bring_seeds_and_negative_prompts():
    text = library(face="a face of <token>", walk={"prompt": " a walk ", "seed": 7, "negative_prompt": "rain"})
    spec = ValidationSpec(user_prompt_library=text, validation_negative_prompt="blurry", validation_seed=3)
    face, walk = make_shots(spec, PICO, ["a caption"], "sks")
    assert face == ("face", "a face of sks", "blurry", Canvas(64, 64, 3), None)
    assert walk == ("walk", "a walk", "rain", Canvas(64, 64, 7), None)


def test_prompts_and_a_library_are_all_pictured_and_captions_only_without_both():
    both = ValidationSpec(validation_prompts=("one",), user_prompt_library=library(two="two"))
    assert [shot.name for shot in make_shots(both, PICO, ["a caption"], "")] == ["00", "two"]
    assert [shot.prompt for shot in make_shots(ValidationSpec(), PICO, ["a", "b"], "")] == ["a", "b"]
    assert make_shots(ValidationSpec(num_validation_images=0), PICO, ["a"], "") == ()


def test_a_nickname_that_is_the_number_of_a_prompt_is_refused():
    both = ValidationSpec(validation_prompts=("one",), user_prompt_library=library(**{"00": "two"}))
    with pytest.raises(JobError, match="'00' is also the number of a prompt"):
        make_shots(both, PICO, [], "")


def test_several_sizes_are_pictured_each_and_rounded_to_whole_tokens(caplog):
    spec = ValidationSpec(validation_prompts=("one",), validation_resolution="64x96, 50, 48x48")
    shots = make_shots(spec, PICO, [], "")
    assert [(shot.name, shot.canvas[:2]) for shot in shots] == [("00_64x96", (64, 96)), ("00_48x48", (48, 48))]
    assert "50x50 is pictured as 48x48: edges are multiples of 16" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[1]", "is no JSON object"),
        ("{}", "has no prompts; write it as"),
        ('{"a": "x", "a": "y"}', "has a twice"),
        ('{"a": "x", "A": "y"}', "has A, a twice"),
        ('{"a/b": "x"}', "'a/b' is no file name"),
        ('{"..": "x"}', "'..' is no file name"),
        ('{"a": ""}', "'a' has no text"),
        ('{"a": {"promt": "x"}}', "has promt; known are prompt"),
        ('{"a": {"prompt": "x", "seed": -1}}', "seed -1 is no whole number"),
        ('{"a": {"prompt": "x", "seed": true}}', "seed True is no whole number"),
    ],
)
def test_a_library_that_is_wrong_is_told_how(text, said):
    with pytest.raises(ValueError, match=r"library|nickname|prompt") as wrong:
        parse_library(text)
    assert said in str(wrong.value)
    with pytest.raises(JobError, match=r"job\.validation"):
        parse_job({"datasets": [{"instance_data_dir": "."}], "validation": {"user_prompt_library": text}})


def test_a_token_without_a_trigger_word_is_an_error(pictures):
    data = job_data(pictures, validation={"validation_prompts": ["<token> at the sea"], "num_validation_images": 4})
    with pytest.raises(JobError, match="no dataset has a trigger_word"):
        prepare(parse_job(data))
    data["datasets"][0]["trigger_word"] = "sks ball"
    assert prepare(parse_job(data)).shots[0].prompt == "sks ball at the sea"


# How it is sampled


@pytest.fixture(scope="module")
def model():
    return load_transformer(PICO_FILES.transformer, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> list[Encoded]:
    texts = ["a grinning face", "a red apple", ""]
    folder = tmp_path_factory.mktemp("texts")
    encoding = EncoderFormat(torch.float32)
    caches = open_caches(folder, (), PICO_FILES, PICO, encoding)
    encode_captions(caches, texts, PICO_FILES, PICO, encoding, torch.device("cpu"), silent)
    return [Encoded(entry["text"][None], entry["pooled"][None]) for entry in map(caches.text, texts)]


CFG = SamplerSettings(num_steps=6, shift=2.0, guidance=2.5, guidance_real=3.0)
CANVAS = Canvas(64, 64, 0)


def sampled(model, captions, settings, canvas=CANVAS) -> torch.Tensor:
    found = sample_latents(model, captions[:2], [captions[2]] * 2, settings, canvas)
    assert found is not None
    return found


def test_cfg_in_one_pass_and_in_two_agree(model, captions):
    one, two = (sampled(model, captions, SamplerSettings(6, 2.0, 2.5, 3.0, cfg_passes=passes)) for passes in ("one", "two"))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_a_card_without_room_for_one_pass_gets_two_and_that_is_said(model, captions, caplog):
    def no_room(module, inputs, given):
        if len(given["hidden_states"]) > 2:
            raise torch.OutOfMemoryError("four pictures are too many")

    expected = sampled(model, captions, SamplerSettings(6, 2.0, 2.5, 3.0, cfg_passes="two"))
    handle = model.register_forward_pre_hook(no_room, with_kwargs=True)
    try:
        assert torch.equal(sampled(model, captions, SamplerSettings(6, 2.0, 2.5, 3.0)), expected)
        assert caplog.text.count("no room for real CFG in one pass") == 1
        with pytest.raises(torch.OutOfMemoryError):
            sampled(model, captions, SamplerSettings(6, 2.0, 2.5, 3.0, cfg_passes="one"))
    finally:
        handle.remove()


def test_the_first_steps_go_without_cfg_where_that_is_asked_for(model, captions):
    off = sampled(model, captions, SamplerSettings(6, 2.0, 2.5, 1.0))
    assert torch.equal(sampled(model, captions, SamplerSettings(6, 2.0, 2.5, 3.0, no_cfg_steps=6)), off)
    late, on = (sampled(model, captions, SamplerSettings(6, 2.0, 2.5, 3.0, no_cfg_steps=steps)) for steps in (2, 0))
    assert not torch.allclose(late, on, atol=1e-2) and not torch.allclose(late, off, atol=1e-2)


def test_cfg_ends_for_good_where_both_predictions_agree_and_saves_passes(model, captions):
    """At least 30 %, at a difference to full CFG that is smaller than that of no CFG; see benchmarks/adaptive_cfg.py."""
    steps, calls = 20, []
    handle = model.register_forward_pre_hook(
        lambda module, inputs, kwargs: calls.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    pictures = {}
    for name, scale, threshold in (("full", 3.0, 1.0), ("adaptive", 3.0, 0.88), ("off", 1.0, 1.0)):
        calls.clear()
        pictures[name] = sampled(model, captions, SamplerSettings(steps, 2.0, 2.5, scale, cfg_threshold=threshold)), sum(calls)
    handle.remove()
    (full, all_passes), (adaptive, fewer), (off, _) = pictures.values()
    assert all_passes == 4 * steps and fewer <= 0.7 * all_passes
    assert (adaptive - full).square().mean() < (off - full).square().mean()


def test_a_picture_does_not_depend_on_the_pictures_beside_it_when_cfg_ends_by_itself(model, captions):
    settings = SamplerSettings(8, 2.0, 2.5, 3.0, cfg_threshold=0.98)
    both = sampled(model, captions, settings)
    alone = sample_latents(model, captions[1:2], captions[2:], settings, CANVAS)
    assert torch.equal(both[1:], alone)


def test_guidance_and_similarity_are_what_they_say():
    one, other = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    assert similarity(one[:1], other[:1]) == 1 and similarity(one, other) == 0
    assert torch.equal(guide(one, other, 1.0), one) and torch.equal(guide(one, other, 3.0), 3 * one - 2 * other)


# What is kept


def test_base_pictures_are_made_once_for_all_that_shapes_them_and_each_later_one_stands_beside_its_own(
    tmp_path, pictures, caplog
):
    validation = {
        "user_prompt_library": library(ball="a ball"),
        "validation_num_inference_steps": 2,
        "num_validation_images": 4,
    }
    cache = tmp_path / "cache"
    data = job_data(pictures, validation=validation, training={"max_train_steps": 2})
    first = RunDir(Path(run_in_process(parse_job(data), tmp_path / "first", cache)["run_dir"]))
    (kept,) = (cache / "pictures").rglob("*.png")
    assert kept.read_bytes() == first.sample_path(0, "ball").read_bytes()
    steps = data["training"]["max_train_steps"]
    with Image.open(first.compared_path(steps, "ball")) as both:
        assert both.width == 64 + 5 + 64 and both.height > 64
        assert both.crop((0, both.height - 64, 64, both.height)).tobytes() == Image.open(kept).convert("RGB").tobytes()

    written = kept.stat().st_mtime_ns
    data["training"] = data["training"] | {"seed": 9}
    second = RunDir(Path(run_in_process(parse_job(data), tmp_path / "second", cache)["run_dir"]))
    assert second.sample_path(0, "ball").read_bytes() == kept.read_bytes() and kept.stat().st_mtime_ns == written
    data["validation"] = validation | {"user_prompt_library": library(ball="a ball", cube="a cube")}
    third = RunDir(Path(run_in_process(parse_job(data), tmp_path / "third", cache)["run_dir"]))
    assert len(list((cache / "pictures").rglob("*.png"))) == 2 and kept.stat().st_mtime_ns == written
    events = map(json.loads, third.events_path.read_text(encoding="utf-8").splitlines())
    of_the_base = [event for event in events if event["event"] == "sample" and event["step"] == 0]
    assert [event["index"] for event in of_the_base] == [0, 1], "each is told of once"


def test_pictures_in_the_middle_change_no_byte_of_the_training(tmp_path, pictures, cache):
    often = {"validation_prompts": ["a ball"], "validation_step_interval": 1, "validation_num_inference_steps": 2}
    runs = [
        run_in_process(
            parse_job(job_data(pictures, validation=validation, training={"max_train_steps": 3})), tmp_path / str(number), cache
        )
        for number, validation in enumerate(({"num_validation_images": 0}, often | {"num_validation_images": 4}))
    ]
    tensors = [load_file(run["lora"]) for run in runs]
    assert runs[0]["losses"] == runs[1]["losses"] and tensors[0].keys() == tensors[1].keys()
    assert all(tensor.equal(tensors[1][name]) for name, tensor in tensors[0].items())
    assert (runs[0]["samples"], runs[0]["before_after"]) == ([], None) and len(runs[1]["samples"]) == 1


def test_pictures_can_come_by_epochs(tmp_path, pictures, cache):
    validation = {"validation_prompts": ["a ball"], "num_validation_images": 4, "validation_num_inference_steps": 1}
    validation |= {"validation_epoch_interval": 2}
    training = {"train_batch_size": 2, "gradient_accumulation_steps": 2, "max_train_steps": 10}  # an epoch is 3 batches
    data = job_data(pictures, validation=validation, training=training)
    run = Path(run_in_process(parse_job(data), tmp_path, cache)["run_dir"])
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        f"step-{step:06d}"
        for step in (0, 3, 6, 9, 10)  # after 2, 4 and 6 epochs, and at the end
    ]
