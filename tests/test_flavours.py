"""The flavours beside dev, each trained for a step on weights of the size of pico: what it settles, and what it makes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_files import WITHOUT_GUIDANCE, write
from PIL import Image, ImageOps
from safetensors.torch import load_file

from support import job_data, run_in_process
from trainer_core.flavour_check import flow_of
from trainer_core.flow import FAST_SIGMAS
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.job_file import parse_job
from trainer_core.objective import Objective, attention_mask
from trainer_core.run_dir import RunDir, read_json
from trainer_core.specs.flow import FlowSpec
from trainer_core.specs.validation import ValidationSpec
from trainer_core.validation.sample import sampler_settings

PATHS = ("transformer", "vae", "clip_l", "t5", "clip_tokenizer", "t5_tokenizer")
FEW_STEPS = {"validation_num_inference_steps": 2}  # for time; `defaults` says how many there would be
DEFAULTS = {"dev": (20, 3.5, 1.0), "krea": (28, 4.5, 1.0)}  # steps, guidance and real CFG of pictures
WORDS = torch.tensor([[True, True, False]])


@pytest.fixture(scope="module")
def without_guidance(tmp_path_factory) -> Path:
    """The built-in transformer as schnell and LibreFLUX come: without the guidance embedder."""
    return write(tmp_path_factory.mktemp("files") / "flux.safetensors", WITHOUT_GUIDANCE)


def job_of(flavour: str, pictures: Path, transformer: Path = PICO_FILES.transformer, **parts: dict):
    files = replace(PICO_FILES, transformer=transformer)
    base = {f"{name}_path": str(getattr(files, name)) for name in PATHS} | {"model_flavour": flavour}
    data = job_data(
        pictures,
        base=base | parts.pop("base", {}),
        lora={"lora_rank": 2, "lora_blocks": "single 0-1"},
        validation={"validation_prompts": ["a ball"], "validation_resolution": "32x32", "num_validation_images": 4}
        | FEW_STEPS
        | parts.pop("validation", {}),
        training={"max_train_steps": 1},
        **parts,
    )
    data["datasets"][0]["resolution"] = [32]
    return parse_job(data)


def trained(job, tmp_path: Path, cache: Path) -> dict:
    """The manifest of a run, which has made a LoRA of this base and a picture before and after."""
    result = run_in_process(job, tmp_path / "runs", cache)
    assert load_file(result["lora"]) and len(result["losses"]) == 1
    [picture] = result["samples"]
    with Image.open(picture) as made:
        assert made.size == (32, 32)
    return read_json(RunDir(Path(result["run_dir"])).manifest_path)


def defaults(flavour: str) -> tuple[int, float, float]:
    """Steps, guidance and real CFG of pictures, where the job leaves them to the base."""
    settings = sampler_settings(ValidationSpec(), FLAVOURS[flavour])
    return settings.num_steps, settings.guidance, settings.guidance_real


def draws(flow: FlowSpec) -> tuple[set[float], set[float]]:
    """Noise levels and guidance of many draws."""
    found = [Objective(flow, torch.float32, 0).draw(torch.zeros(8, 16, 4, 4), step, 0) for step in range(20)]
    return {s for draw in found for s in draw.sigma_B.tolist()}, {g for draw in found for g in draw.guidance_B.tolist()}


def test_schnell_trains_on_its_own_noise_levels_and_is_pictured_in_four_steps(tmp_path, pictures, without_guidance, cache):
    job = job_of("schnell", pictures, without_guidance)
    manifest = trained(job, tmp_path, cache)
    assert manifest["flow"]["flux_fast_schedule"] and not manifest["job"]["flow"]["flux_fast_schedule"]
    assert defaults("schnell")[0] == 4 and not manifest["base"]["guidance"]
    assert draws(flow_of(job))[0] == set(FAST_SIGMAS)


@pytest.mark.parametrize(
    "parts",
    [
        {"base": {"assistant_lora_path": "helper.safetensors"}},
        {"flow": {"flow_use_uniform_schedule": True}},
        {"flow": {"flow_schedule_shift": 3.0}},
        {"flow": {"flow_sigmoid_scale": 1.5}},
    ],
    ids=["assistant", "density", "shift", "spread"],
)
def test_schnell_with_an_assistant_or_noise_levels_of_the_jobs_own_keeps_the_jobs(pictures, without_guidance, parts):
    job = job_of("schnell", pictures, without_guidance, **parts)
    assert flow_of(job) == job.flow
    assert len(draws(flow_of(job))[0]) > 100


@pytest.mark.parametrize("flavour", ["dev", "krea"])
def test_dev_and_krea_train_as_the_job_says_and_are_pictured_with_their_guidance(tmp_path, pictures, cache, flavour):
    job = job_of(flavour, pictures)
    manifest = trained(job, tmp_path, cache)
    assert manifest["base"]["guidance"] and manifest["flow"] == manifest["job"]["flow"]
    assert manifest["sampler"]["guidance"] == defaults(flavour)[1] and defaults(flavour) == DEFAULTS[flavour]
    assert draws(flow_of(job))[1] == {1.0}


def test_schnell_trains_all_noise_levels_with_an_assistant_that_its_lora_does_not_hold(
    tmp_path, pictures, without_guidance, cache
):
    """The first step's loss is the base's, and with the assistant in it another."""
    parts = {"flow": {"flow_use_uniform_schedule": True}, "optimizer": {"learning_rate": 0.1}}
    alone = run_in_process(job_of("schnell", pictures, without_guidance, **parts), tmp_path / "alone", cache)
    job = job_of("schnell", pictures, without_guidance, **parts, base={"assistant_lora_path": alone["lora"]})
    helped = run_in_process(job, tmp_path / "helped", cache)
    assert helped["losses"] != alone["losses"] and len(draws(flow_of(job))[0]) > 100
    assert load_file(helped["lora"]).keys() == load_file(alone["lora"]).keys()


def test_fluxbooru_is_told_its_guidance_sees_the_padding_and_is_pictured_with_real_cfg(tmp_path, pictures, cache):
    job = job_of("fluxbooru", pictures)
    manifest = trained(job, tmp_path, cache)
    assert manifest["sampler"]["guidance_real"] == 6 and defaults("fluxbooru") == (28, 3.5, 6.0)
    assert draws(flow_of(job))[1] == {3.5} and attention_mask(flow_of(job), WORDS) is None
    ranged = job_of("fluxbooru", pictures, flow={"flux_guidance_mode": "random-range"})
    assert flow_of(ranged) == ranged.flow


def test_libreflux_has_the_padding_hidden_and_is_pictured_with_real_cfg(tmp_path, pictures, without_guidance, cache):
    job = job_of("libreflux", pictures, without_guidance)
    manifest = trained(job, tmp_path, cache)
    assert manifest["flow"]["flux_attention_masked_training"]
    assert manifest["sampler"]["guidance_real"] == 6 and defaults("libreflux") == (28, 3.5, 6.0)
    assert torch.equal(attention_mask(flow_of(job), WORDS), WORDS)


def test_kontext_is_trained_on_pairs_and_pictured_from_a_reference(tmp_path, pictures, cache):
    references = tmp_path / "references"
    references.mkdir()
    for path in pictures.glob("*.png"):
        with Image.open(path) as image:
            ImageOps.invert(image).save(references / path.name)
    job = job_of("kontext", pictures)
    [dataset] = job.datasets
    job = job.model_copy(update={"datasets": (dataset.model_copy(update={"reference_data_dir": str(references)}),)})
    manifest = trained(job, tmp_path, cache)
    assert manifest["sampler"]["guidance"] == 2.5 and defaults("kontext") == (28, 2.5, 1.0)
    assert manifest["shots"][0]["reference"]["path"] == str(references / "ball_0.png")


def test_pico_and_dev_settle_nothing_by_themselves(pictures):
    for job in (parse_job(job_data(pictures)), job_of("dev", pictures), job_of("krea", pictures), job_of("kontext", pictures)):
        assert flow_of(job) == job.flow
