"""Presets by card: what they set, what they refuse, and that the plan says that they fit."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.host_memory import make_setup
from benchmarks.random_flux import FULL, original_shapes, t5_shapes, write_hollow
from trainer_core.errors import JobError
from trainer_core.flux.files import ModelFiles
from trainer_core.flux.vae import FLUX_VAE
from trainer_core.job_file import parse_job
from trainer_core.plan.phases import GIB, Phase, plan_phases
from trainer_core.plan.plan import FITS, Room, judge
from trainer_core.presets import CARDS, CUSTOM, describe, fill
from trainer_core.setup import Setup
from trainer_core.specs.base import BaseModelSpec
from trainer_core.validation.sample import sampler_settings
from trainer_core.validation.shots import make_shots

RAM = 32 * GIB
ONE_PICTURE = ("10 GB", "12 GB", "16 GB", "24 GB")  # a step of which is rehearsed once
LARGE = tuple(card for card in CARDS if card not in ONE_PICTURE)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> ModelFiles:
    """The headers of FLUX.1 dev's four files, with holes where the numbers would be."""
    folder = tmp_path_factory.mktemp("models")
    with torch.device("meta"):
        clip = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
        modules = {"vae": AutoencoderKL(**FLUX_VAE), "clip_l": clip}
    shapes = {name: {key: tuple(t.shape) for key, t in module.state_dict().items()} for name, module in modules.items()}
    shapes |= {"transformer": original_shapes(FULL), "t5": t5_shapes()}
    for name, sizes in shapes.items():
        write_hollow(folder / f"{name}.safetensors", sizes)
    empty = make_setup(folder / "transformer.safetensors", "no_change", 64).files
    return replace(empty, **{name: folder / f"{name}.safetensors" for name in shapes})


def setup_for(files: ModelFiles, card: str) -> Setup:
    """A job of the preset's size: rank 16, all+ffs, gradient checkpointing, four pictures at 1024 px."""
    preset = CARDS[card]
    base = fill(card, {}, "a test")
    setup = make_setup(
        files.transformer, base.get("base_model_precision", "no_change"), preset.pixels, device=torch.device("cuda")
    )
    data = setup.job.model_dump(exclude={"base"}) | {"base": base}
    data["training"]["train_batch_size"] = preset.batch
    data["validation"]["num_validation_images"] = 4
    job = parse_job(data)
    shots = make_shots(job.validation, setup.flavour, list("abcd"), "")
    sampler = sampler_settings(job.validation, setup.flavour)
    return replace(setup, job=job, files=files, shots=shots, sampler=sampler)


@pytest.fixture(scope="module")
def planned(files: ModelFiles) -> Callable[[str], tuple[Phase, ...]]:
    """The phases of a card's preset, planned once."""
    return cache(lambda card: plan_phases(setup_for(files, card)))


@pytest.mark.parametrize("card", [*ONE_PICTURE, *(pytest.param(card, marks=pytest.mark.slow) for card in LARGE)])
def test_a_preset_is_planned_to_fit_its_card_at_its_size(planned: Callable[[str], tuple[Phase, ...]], card: str):
    phases = planned(card)
    room = Room(RAM, int(card.split()[0]) * GIB)
    told = [f"{phase.name}: {phase.card / GIB:.1f} GiB on the card, {phase.host / GIB:.1f} on the host" for phase in phases]
    assert {phase.name for phase in phases} >= {"train", "pictures", "encode captions"}
    assert judge(phases, room) == FITS, told


@pytest.mark.parametrize(("card", "smaller"), [("12 GB", 10), ("16 GB", 12), ("24 GB", 16)])
def test_a_smaller_card_than_the_preset_s_is_too_small(planned: Callable[[str], tuple[Phase, ...]], card: str, smaller: int):
    assert judge(planned(card), Room(RAM, smaller * GIB)) != FITS


def test_a_preset_fills_in_what_stands_at_its_default():
    shown = BaseModelSpec().model_dump()
    assert fill(CUSTOM, shown, "a node") == shown
    changed = {name for name, value in fill("10 GB", shown, "a node").items() if value != shown[name]}
    assert changed == set(CARDS["10 GB"].base)
    assert fill("10 GB", shown | {"base_model_precision": "nf4-bnb"}, "a node") == fill("10 GB", shown, "a node")


def test_a_preset_and_a_setting_that_disagree_are_both_named():
    with pytest.raises(JobError, match=r"base_model_precision is 'int8-quanto', and the preset sets 'nf4-bnb'"):
        fill("10 GB", {"base_model_precision": "int8-quanto"}, "a node")
    with pytest.raises(JobError, match="no preset '11 GB'; known are custom, 10 GB"):
        fill("11 GB", {}, "a node")


def test_every_preset_is_a_valid_base_and_says_what_it_sets():
    for card, preset in CARDS.items():
        BaseModelSpec(**preset.base)
        assert all(f"{name} {value}" in describe(card) for name, value in preset.base.items())
        assert all(value != BaseModelSpec.model_fields[name].default for name, value in preset.base.items())
