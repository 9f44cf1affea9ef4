"""Phases give their memory back, encoders can come one at a time, and the VAE's options do what they say."""

import gc
import itertools
import logging

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn
from transformers import CLIPTextModel, T5EncoderModel

from support import job_data, opened, run_in_process
from trainer_core.caching import fill_caches
from trainer_core.context import RunContext
from trainer_core.data.encode import CAPTIONS_AT_ONCE, encode_captions
from trainer_core.events import EventLog
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.flux.text import EncoderFormat
from trainer_core.flux.vae import FLUX_VAE, TILE, Vae, load_vae, take_in_tiles
from trainer_core.job_file import parse_job
from trainer_core.run_dir import run_dir_for
from trainer_core.setup import prepare

CPU = torch.device("cpu")
KINDS = (AutoencoderKL, AutoencoderTiny, CLIPTextModel, T5EncoderModel)


def alive() -> dict[str, int]:
    """Bytes of the weights of each kind of encoder that is in memory."""
    gc.collect()
    models = [thing for thing in gc.get_objects() if isinstance(thing, nn.Module) and isinstance(thing, KINDS)]
    return {type(model).__name__: sum(p.numel() * p.element_size() for p in model.parameters()) for model in models}


def test_each_phase_has_given_back_its_encoder_when_the_next_begins(pictures, tmp_path):
    assert alive() == {}
    setup = prepare(parse_job(job_data(pictures)))
    run_dir = run_dir_for(setup.job, tmp_path)
    run_dir.root.mkdir(parents=True)
    seen: dict[str, list[dict[str, int]]] = {}

    def listen(event: dict) -> None:
        if event["event"] == "phase":
            seen.setdefault(event["phase"], []).append(alive())

    fill_caches(setup, RunContext(run_dir, tmp_path / "cache", EventLog(run_dir.events_path, listen), lambda: False))
    assert {kind for state in seen["encode pictures"] for kind in state} == {"AutoencoderTiny"}
    assert {kind for state in seen["encode captions"] for kind in state} == {"CLIPTextModel", "T5EncoderModel"}
    assert alive() == {}


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_offload_during_startup_never_has_both_text_encoders(one_at_a_time, tmp_path):
    captions = [f"a ball {number}" for number in range(2 * CAPTIONS_AT_ONCE)]
    seen, calls = [], itertools.count()
    caches = opened([], tmp_path)

    def look(done: int, total: int) -> None:
        if done or next(calls) % 20 == 0:  # while a model is loaded it is called for each of its tensors
            seen.append(set(alive()))

    encode_captions(
        caches,
        captions,
        PICO_FILES,
        FLAVOURS["pico"],
        EncoderFormat(torch.float32),
        CPU,
        look,
        one_at_a_time=one_at_a_time,
    )
    both = {"CLIPTextModel", "T5EncoderModel"}
    assert (both in seen) is not one_at_a_time
    texts = [caches.text(caption)["text"] for caption in captions]
    assert len({text.numpy().tobytes() for text in texts}) == len(captions)


def test_offload_during_startup_is_an_option_of_the_run(pictures, tmp_path):
    one, two = (
        job_data(pictures, base={"offload_during_startup": is_on}, training={"max_train_steps": 2}) for is_on in (False, True)
    )
    one = run_in_process(parse_job(one), tmp_path / "one", tmp_path / "first cache")
    two = run_in_process(parse_job(two), tmp_path / "two", tmp_path / "second cache")
    assert one["losses"] == two["losses"]


def test_vae_enable_tiling_takes_large_pictures_in_pieces():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = Vae(AutoencoderKL(**FLUX_VAE).requires_grad_(False).eval(), CPU)
    pixels = torch.rand(1, 3, 64, TILE + 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sizes = []
    vae.model.encoder.register_forward_hook(lambda module, given, result: sizes.append(tuple(given[0].shape[-2:])))
    whole = vae.encode(pixels)
    take_in_tiles(vae.model)
    tiled = vae.encode(pixels)
    assert sizes[0] == (64, TILE + 128) and len(sizes) > 2 and max(width for _, width in sizes[1:]) == TILE
    assert tiled.shape == whole.shape and (tiled - whole).abs().mean() < 0.2 * whole.abs().mean()


def test_vae_enable_tiling_says_that_a_tiny_vae_does_without(caplog):
    with caplog.at_level(logging.WARNING):
        load_vae(PICO_FILES.vae, CPU, tiled=True)
    assert "vae_enable_tiling has no effect with TAEF1" in caplog.text


def test_vae_enable_slicing_says_that_it_has_no_effect_on_single_pictures(pictures, caplog):
    with caplog.at_level(logging.WARNING):
        prepare(parse_job(job_data(pictures, base={"vae_enable_slicing": True})))
    assert "vae_enable_slicing has no effect: with vae_batch_size 1 pictures go through the VAE one at a time" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        prepare(parse_job(job_data(pictures, base={"vae_enable_slicing": True, "vae_batch_size": 2})))
    assert "vae_enable_slicing" not in caplog.text
