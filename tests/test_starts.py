"""What the run's pictures start from, the job's own or references of its datasets: brought to size, fed, and shown."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from support import job_data, make_pictures, run_in_process
from trainer_core.compare import compare
from trainer_core.errors import JobError
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import load_transformer
from trainer_core.flux.vae import DOWNSCALE
from trainer_core.job_file import parse_job
from trainer_core.plan.phases import disk_bytes, largest_picture, sampling_pass
from trainer_core.run_dir import RunDir
from trainer_core.setup import Setup, prepare
from trainer_core.validation.sample import Encoded, SamplerSettings, prompts_at_once, sample_latents
from trainer_core.validation.shots import Canvas, alike, from_data, to_data

SIZES = ((64, 64), (80, 48), (48, 80))  # to which pico brings the three aspects of `make_pictures`


@pytest.fixture(scope="module")
def references(tmp_path_factory, pictures) -> Path:
    folder = tmp_path_factory.mktemp("data") / "references"
    folder.mkdir()
    for path in pictures.glob("*.png"):
        with Image.open(path) as image:
            ImageOps.invert(image).save(folder / path.name)
    return folder


def prepared(pictures: Path, references: Path | None, **validation: object) -> Setup:
    data = job_data(pictures, validation={"num_validation_images": 4} | validation)
    if references:
        data["datasets"][0]["reference_data_dir"] = str(references)
    return prepare(parse_job(data))


def names(setup: Setup) -> list[str]:
    return [shot.reference.path.name for shot in setup.shots]


# Which


def test_a_caption_is_pictured_from_its_own_reference_and_in_its_size(pictures, references):
    setup = prepared(pictures, references, num_validation_images=4)
    assert [(shot.prompt, shot.reference.path) for shot in setup.shots] == [
        (f"a ball {number}", references / f"ball_{number}.png") for number in range(4)
    ]
    assert [tuple(shot.canvas[:2]) for shot in setup.shots] == [tuple(shot.reference.bucket) for shot in setup.shots]
    assert [tuple(shot.canvas[:2]) for shot in setup.shots] == [*SIZES, SIZES[0]]
    assert all(shot.reference is None for shot in prepared(pictures, None, num_validation_images=4).shots)


def test_prompts_take_the_references_in_turn_and_those_set_aside_come_first(pictures, references):
    setup = prepared(pictures, references, validation_prompts=["one", "two", "three"], num_held_out=2, eval_steps_interval=1)
    aside = [sample.reference.path.name for sample in setup.eval_samples]
    assert names(setup)[:2] == aside and names(setup)[2] not in aside
    many = prepared(pictures, references, validation_prompts=[f"number {number}" for number in range(8)])
    assert names(many)[6:] == names(many)[:2]


def test_one_caption_for_all_is_pictured_from_as_many_references_as_are_asked_for(pictures, references):
    data = job_data(pictures, validation={"num_validation_images": 3})
    data["datasets"][0] |= {
        "reference_data_dir": str(references),
        "caption_strategy": "instanceprompt",
        "instance_prompt": "invert it",
    }
    shots = prepare(parse_job(data)).shots
    assert [shot.prompt for shot in shots] == ["invert it"] * 3 and len({shot.reference.path for shot in shots}) == 3


def test_a_file_or_a_folder_of_the_jobs_own_goes_before_those_of_the_datasets(pictures, references, tmp_path):
    make_pictures(tmp_path / "own", 2)
    folder = prepared(
        pictures, references, validation_prompts=["one", "two", "three"], validation_reference_path=str(tmp_path / "own")
    )
    assert names(folder) == ["ball_0.png", "ball_1.png", "ball_0.png"]
    assert {shot.reference.path.parent for shot in folder.shots} == {tmp_path / "own"}
    file = prepared(pictures, None, validation_prompts=["one"], validation_reference_path=str(tmp_path / "own" / "ball_1.png"))
    assert names(file) == ["ball_1.png"]


@pytest.mark.parametrize(
    ("place", "said"), [("nowhere.png", "there is no picture"), ("", "holds no pictures"), ("no.png", "no.png")]
)
def test_a_reference_that_is_no_picture_is_told_before_anything_is_loaded(pictures, tmp_path, place, said):
    (tmp_path / "no.png").write_bytes(b"no picture")
    path = tmp_path / place if place else tmp_path / "empty"
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobError, match=f"validation_reference_path.*{said}"):
        prepared(pictures, None, validation_prompts=["one"], validation_reference_path=str(path))


# In which size


def test_sizes_that_are_asked_for_are_kept_and_a_reference_has_their_area_and_its_own_aspect(pictures, references):
    setup = prepared(pictures, references, num_validation_images=2, validation_resolution="64x64, 96x128")
    assert [tuple(shot.canvas[:2]) for shot in setup.shots] == [(64, 64), (96, 128)] * 2
    assert [tuple(shot.reference.bucket) for shot in setup.shots] == [(64, 64), (112, 112), (80, 48), (144, 96)]
    assert [shot.name for shot in setup.shots[:2]] == ["00_64x64", "00_96x128"]


def test_shots_are_sampled_together_where_canvas_and_reference_have_one_size(pictures, references):
    shots = prepared(pictures, references, num_validation_images=6, validation_resolution="64x64").shots
    assert [[shot.name for shot in group] for group in alike(shots)] == [["00", "03"], ["01", "04"], ["02", "05"]]


def test_a_shot_is_the_same_after_the_manifest(pictures, references):
    for shot in (
        *prepared(pictures, references, num_validation_images=2).shots,
        *prepared(pictures, None, num_validation_images=1).shots,
    ):
        assert from_data(json.loads(json.dumps(to_data(shot)))) == shot
    old = to_data(shot)
    del old["reference"]
    assert from_data(old) == shot


def test_the_plan_counts_what_pictures_start_from(pictures, references, tmp_path):
    large = tmp_path / "large.png"
    Image.new("RGB", (512, 512), "red").save(large)
    fields = {"validation_prompts": ["one"], "validation_resolution": "512x512"}
    plain, started = (
        prepared(pictures, None, **fields),
        prepared(pictures, None, **fields, validation_reference_path=str(large)),
    )
    assert largest_picture(started) == (512, 512) and largest_picture(plain) in SIZES
    assert disk_bytes(started)["latents"] - disk_bytes(plain)["latents"] == 4 * 16 * (512 // DOWNSCALE) ** 2
    one, alone = sampling_pass(started), sampling_pass(plain)
    assert one.reference == (512, 512) and one.num_joint - alone.num_joint == 32 * 32 and one.batch == alone.batch
    assert started.shots[0].num_tokens == 2 * plain.shots[0].num_tokens == 2 * 32 * 32
    settings = SamplerSettings(4, 2.0, 2.5, 1.0)
    assert prompts_at_once(settings, started.shots[0].num_tokens) == prompts_at_once(settings, plain.shots[0].num_tokens) // 2


# What comes of it


@torch.no_grad()
def test_the_sampler_gives_each_prompt_its_reference_and_the_negative_has_it_too():
    transformer, random = (
        load_transformer(PICO_FILES.transformer, torch.float32, torch.device("cpu")),
        torch.Generator().manual_seed(0),
    )
    shape, settings, canvas = transformer.config, SamplerSettings(2, 2.0, 2.5, 3.0), Canvas(32, 32, 0)

    def asked(reference: torch.Tensor | None) -> Encoded:
        return Encoded(text, pooled, None, reference)

    text = torch.randn(1, 4, shape.joint_attention_dim, generator=random)
    pooled = torch.randn(1, shape.pooled_projection_dim, generator=random)
    one, other = torch.randn(2, 1, 16, 4, 6, generator=random)
    seen: list[int] = []
    transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["hidden_states"].shape[1]), with_kwargs=True
    )
    both = sample_latents(transformer, [asked(one), asked(other)], [asked(one), asked(other)], settings, canvas)
    assert set(seen) == {4 + 6}, "every pass, the negative's too, has the tokens of a reference"
    alone = sample_latents(transformer, [asked(other)], [asked(other)], settings, canvas)
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-2)
    assert not torch.allclose(alone, sample_latents(transformer, [asked(None)], [asked(None)], settings, canvas), atol=1e-2)


def test_a_runs_pictures_start_from_the_held_out_references_and_so_do_those_of_a_comparison(
    tmp_path, pictures, references, cache
):
    made = {}
    for name, folder in (("with", references), ("without", None)):
        asked = {"validation_prompts": ["a ball", "a ball"], "num_validation_images": 4, "num_held_out": 2}
        asked |= {"validation_num_inference_steps": 1, "validation_resolution": "64x64", "eval_steps_interval": 1}
        data = job_data(pictures, validation=asked, training={"max_train_steps": 1})
        if folder:
            data["datasets"][0]["reference_data_dir"] = str(folder)
        result = run_in_process(parse_job(data), tmp_path / name, cache)
        made[name] = [Path(path).read_bytes() for path in result["samples"]], RunDir(Path(result["run_dir"]))
    (started, run_dir), (plain, _) = made.values()
    assert plain[0] == plain[1] and started[0] != started[1] and plain[0] not in started
    shots = json.loads(run_dir.manifest_path.read_text())["shots"]
    assert len({shot["reference"]["path"] for shot in shots}) == 2
    with Image.open(run_dir.compared_path(1, "00")) as sheet:
        assert sheet.width > 3 * 64, "the reference stands before the base's picture and that of the LoRA"
    report = compare(run_dir, ["final"], [1.0], tmp_path / "grid.png", cache)
    assert [row["label"] for row in report["rows"]] == ["base", "step 1, strength 1"]
