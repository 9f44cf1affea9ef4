"""Pure functions against references and by their properties."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import FluxPipeline

from trainer_core import flow
from trainer_core.data.buckets import Bucket, bucket_for, fit_centre, round_to_grid
from trainer_core.flux.latents import image_ids, pack, text_ids, unpack
from trainer_core.flux.predict import told_sigma
from trainer_core.job import OptimizerSpec
from trainer_core.optim import learning_rate_at
from trainer_core.rng import generator
from trainer_core.validation.pictures import running_mean


@pytest.mark.parametrize(
    ("size", "resolution", "grid", "bucket"),
    [
        ((1024, 1024), 1024, 64, (1024, 1024)),
        ((1920, 1080), 1024, 64, (1344, 768)),
        ((4000, 3000), 1024, 64, (1152, 896)),
        ((3000, 4000), 1024, 64, (896, 1152)),
        ((5000, 500), 1024, 64, (3264, 320)),
        ((1920, 1080), 512, 64, (704, 384)),
        ((1280, 768), 512, 64, (640, 384)),
        ((96, 96), 64, 16, (64, 64)),
        ((120, 80), 64, 16, (80, 48)),
        ((80, 120), 64, 16, (48, 80)),
    ],
)
def test_buckets_are_those_of_the_fact_sheet(size, resolution, grid, bucket):
    assert bucket_for(*size, resolution, grid) == bucket


def test_a_fit_covers_its_bucket_and_stays_inside_the_resized_picture():
    for width, height in ((100, 1), (1, 100), (333, 777), (64, 64), (4000, 3000)):
        bucket = bucket_for(width, height, 256, 16)
        fit = fit_centre(width, height, bucket)
        assert fit.width >= bucket.width and fit.height >= bucket.height
        assert 0 <= fit.left <= fit.width - bucket.width
        assert 0 <= fit.top <= fit.height - bucket.height
    assert round_to_grid(1, 64) == 64
    assert str(Bucket(64, 48)) == "64x48"


def test_noise_and_velocity_follow_the_convention():
    latent, noise = torch.randn(2, 16, 4, 4), torch.randn(2, 16, 4, 4)
    assert torch.equal(flow.add_noise(latent, noise, torch.zeros(2)), latent)
    assert torch.equal(flow.add_noise(latent, noise, torch.ones(2)), noise)
    sigma = torch.tensor([0.3, 0.8])
    x = flow.add_noise(latent, noise, sigma)
    back = x - sigma.view(-1, 1, 1, 1) * flow.velocity(latent, noise)
    torch.testing.assert_close(back, latent)


def test_euler_with_the_true_velocity_arrives_at_the_image():
    latent, noise = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    sigmas, x = flow.sampling_schedule(7, 3.0), noise
    for sigma, next_sigma in pairwise(sigmas):
        x = flow.euler_step(x, flow.velocity(latent, noise), sigma, next_sigma)
    torch.testing.assert_close(x, latent)


def test_shift_adds_the_logarithm_to_the_logit():
    sigmas = torch.linspace(0.05, 0.95, 19)
    torch.testing.assert_close(torch.logit(flow.shift_sigmas(sigmas, 3.0)), torch.logit(sigmas) + math.log(3.0))
    schedule = flow.sampling_schedule(20, 2.5)
    assert schedule[0] == 1 and schedule[-1] == 0 and bool((schedule.diff() < 0).all())


@pytest.mark.parametrize(("edge", "shift"), [(256, 1.649), (512, 1.878), (768, 2.332), (1024, 3.158)])
def test_the_dynamic_shift_has_the_known_values(edge, shift):
    assert flow.dynamic_shift((edge // 16) ** 2) == pytest.approx(shift, abs=1e-3)


def test_sigmas_have_the_median_that_the_shift_says():
    sigmas = flow.sample_sigmas(20_000, 1.0, 3.0, generator(0, 0, "test"))
    assert sigmas.median().item() == pytest.approx(0.75, abs=0.01)
    unshifted = flow.sample_sigmas(20_000, 1.0, 0.0, generator(0, 0, "test"))
    assert unshifted.median().item() == pytest.approx(0.5, abs=0.01)


def test_packing_is_that_of_diffusers():
    latent = torch.randn(2, 16, 6, 10)
    assert torch.equal(pack(latent), FluxPipeline._pack_latents(latent, 2, 16, 6, 10))
    assert torch.equal(unpack(pack(latent), 6, 10), latent)
    assert torch.equal(image_ids(6, 10), FluxPipeline._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32))
    assert torch.equal(text_ids(4), torch.zeros(4, 3))


def test_the_told_sigma_is_what_diffusers_computes():
    sigma = torch.rand(1000)
    for dtype in (torch.float32, torch.bfloat16):
        told = told_sigma(sigma, dtype)
        assert torch.equal(sigma.to(dtype) * 1000, (told * 1000).to(dtype))
        assert (told - sigma).abs().max() < 0.005


def test_randomness_is_a_function_of_seed_step_and_purpose():
    def draw(*key):
        return torch.randn(4, generator=generator(*key))

    assert torch.equal(draw(1, 2, "noise"), draw(1, 2, "noise"))
    for other in ((2, 2, "noise"), (1, 3, "noise"), (1, 2, "order")):
        assert not torch.equal(draw(1, 2, "noise"), draw(*other))
    before = torch.get_rng_state()
    draw(5, 5, "noise")
    assert torch.equal(before, torch.get_rng_state())


def test_the_learning_rate_warms_up_and_follows_its_course():
    cosine = OptimizerSpec(lr_scheduler="cosine", learning_rate=1.0, lr_warmup_steps=4)
    rates = [learning_rate_at(cosine, step, 24) for step in range(24)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[14] == pytest.approx(0.5) and rates[-1] < 0.01
    constant = OptimizerSpec(lr_scheduler="constant", learning_rate=0.5, lr_warmup_steps=4)
    assert {learning_rate_at(constant, step, 24) for step in range(24)} == {0.5}


def test_the_running_mean_is_unbiased_at_its_start():
    assert running_mean([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
