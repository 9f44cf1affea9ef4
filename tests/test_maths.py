"""Pure functions against references and by their properties."""

import math
import random
from itertools import pairwise

import pytest
import torch
from diffusers import FluxPipeline

from trainer_core import flow
from trainer_core.data.buckets import (
    LONGEST_BY_SHORTER_EDGE,
    Bucket,
    Fit,
    brought_to,
    bucket_at,
    bucket_by_shorter_edge,
    bucket_for,
    covering,
    crop_at,
    edge_of_area,
    fit_centre,
    measured,
    nearest_aspect,
    round_to_grid,
    share_around,
)
from trainer_core.flux.latents import image_ids, pack, text_ids, unpack
from trainer_core.flux.predict import told_sigma
from trainer_core.objective import Objective, draw_guidance, draw_sigma
from trainer_core.optim import learning_rate_at, make_clip
from trainer_core.rng import generator
from trainer_core.specs.flow import FlowSpec
from trainer_core.specs.optimizer import OptimizerSpec
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


def random_sizes(count: int = 10_000, seed: int = 0) -> list[tuple[int, int]]:
    """From a pixel to 30,000, all aspects, evenly by their logarithms; and the extremes themselves."""
    draw = random.Random(seed)
    sizes = [(round(30_000 ** draw.random()), round(30_000 ** draw.random())) for _ in range(count - 4)]
    return [*sizes, (1, 30_000), (30_000, 1), (1, 1), (30_000, 30_000)]


@pytest.mark.parametrize("unit", ["pixel_area", "pixel"])
@pytest.mark.parametrize(("resolution", "grid"), [(1024, 64), (512, 64), (64, 16), (777.7, 64), (1, 64)])
def test_ten_thousand_sizes_have_buckets_on_the_grid_that_their_fits_cover(unit, resolution, grid):
    edge = round_to_grid(resolution, grid)
    for width, height in random_sizes():
        bucket = bucket_at(width, height, resolution, unit, grid)
        assert bucket.width % grid == 0 and bucket.height % grid == 0 and min(bucket) >= grid
        assert (bucket.width >= bucket.height) if width > height else (bucket.width <= bucket.height)
        assert bucket_at(height, width, resolution, unit, grid) == bucket[::-1]
        fit = fit_centre(width, height, bucket)
        assert 0 <= fit.left <= fit.width - bucket.width and 0 <= fit.top <= fit.height - bucket.height
        assert fit.width == bucket.width or fit.height == bucket.height, "it just covers"
        if unit == "pixel":
            assert min(bucket) == edge and max(bucket) <= LONGEST_BY_SHORTER_EDGE * edge
        else:
            assert bucket.width * bucket.height <= 1.4 * edge**2, "no aspect makes a bucket that no card can hold"


def test_a_bucket_differs_from_its_pictures_aspect_only_by_half_a_step_of_the_grid():
    for width, height in random_sizes():
        bucket, aspect = bucket_for(width, height, 1024, 64), width / height
        if max(aspect, 1 / aspect) <= 64:  # beyond, a picture loses its ends
            assert abs(bucket.width - 1024 * math.sqrt(aspect)) <= 32 and abs(bucket.height - 1024 / math.sqrt(aspect)) <= 32
        by_edge = bucket_by_shorter_edge(width, height, 1024, 64)
        if max(aspect, 1 / aspect) <= LONGEST_BY_SHORTER_EDGE:
            assert abs(max(by_edge) - 1024 * max(aspect, 1 / aspect)) <= 32


def test_areas_stay_within_the_bounds_of_the_fact_sheet():
    for aspect in (1, 5 / 4, 4 / 3, 3 / 2, 16 / 9, 2, 21 / 9):
        area = math.prod(bucket_for(round(3000 * aspect), 3000, 1024, 64)) / 1024**2
        assert 0.9375 <= area <= 1.03, aspect
    for width, height in random_sizes():
        if 1 / 4 <= width / height <= 4:
            assert abs(math.prod(bucket_for(width, height, 1024, 64)) / 1024**2 - 1) < 0.07
    assert math.prod(bucket_for(5000, 500, 1024, 64)) / 1024**2 <= 1.17


@pytest.mark.parametrize("unit", ["pixel_area", "pixel"])
def test_a_wider_picture_never_has_a_narrower_or_higher_bucket(unit):
    widths = sorted(width for width, _ in random_sizes())
    buckets = [bucket_at(width, 700, 1024, unit, 64) for width in widths]
    assert all(one.width <= other.width for one, other in pairwise(buckets))
    if unit == "pixel_area":
        assert all(one.height >= other.height for one, other in pairwise(buckets))
    edges = [bucket_at(1500, 1000, resolution, unit, 64) for resolution in range(64, 2048, 7)]
    assert all(one.width <= other.width and one.height <= other.height for one, other in pairwise(edges))


@pytest.mark.parametrize(
    ("megapixels", "edge"),
    [(0.25, 512), (0.2, 512), (0.3, 512), (0.5, 768), (0.55, 768), (1, 1024), (0.951, 1024), (2, 1536), (4.05, 2048)],
)
def test_the_usual_areas_mean_the_usual_squares(megapixels, edge):
    assert edge_of_area(megapixels) == edge
    assert bucket_at(700, 700, megapixels, "area", 64) == (edge, edge)


def test_other_areas_are_their_own_square():
    assert edge_of_area(1.5) == pytest.approx(1224.74, abs=0.01)
    assert bucket_at(700, 700, 1.5, "area", 64) == (1216, 1216)
    assert bucket_at(1920, 1080, 1.0, "area", 64) == (1344, 768)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((1920, 1080), (1792, 1024)), ((1080, 1920), (1024, 1792)), ((9, 9), (1024, 1024)), ((1, 99), (1024, 8192))],
)
def test_in_pixels_the_shorter_edge_is_the_resolution(size, bucket):
    assert bucket_by_shorter_edge(*size, 1000, 64) == bucket


def test_the_resized_picture_is_that_of_the_fact_sheet():
    assert covering(1920, 1080, Bucket(1344, 768)) == (1365, 768)
    assert fit_centre(1920, 1080, Bucket(1344, 768)) == Fit(1365, 768, 10, 0)
    assert bucket_for(1, 30_000, 1024, 64) == (64, 16_384) and fit_centre(1, 30_000, Bucket(64, 16_384)).width == 64


def test_sizes_are_measured_and_reached_in_each_unit():
    assert (measured(2000, 500, "pixel"), measured(2000, 500, "pixel_area"), measured(2000, 500, "area")) == (500, 1000, 1.0)
    assert brought_to(2000, 500, 250, "pixel") == (1000, 250)
    assert brought_to(2000, 500, 500, "pixel_area") == (1000, 250)
    assert brought_to(2000, 500, 0.25, "area") == (1000, 250)
    assert brought_to(30_000, 1, 4, "pixel_area") == (693, 1)


def test_every_place_of_a_crop_can_be_reached_and_none_beyond():
    bucket = Bucket(64, 64)
    lefts = [crop_at(67, 64, bucket, step / 100, step / 100).left for step in range(101)]
    assert lefts == sorted(lefts) and set(lefts) == {0, 1, 2, 3}
    assert crop_at(67, 64, bucket, 0.5, 0.5) == Fit(67, 64, 1, 0)
    for centre in (0, 0.1, 0.3, 0.5, 0.77, 1):
        left = crop_at(640, 64, bucket, share_around(centre, 640, 64), share_around(centre, 64, 64)).left
        assert left == min(576, max(0, math.ceil(centre * 640 - 32 - 0.5)))


def test_the_nearest_aspect_is_the_one_that_loses_least():
    assert nearest_aspect(1.2, (0.5, 1.0, 1.5)) == 1.0
    assert nearest_aspect(1.3, (0.5, 1.0, 1.5)) == 1.5
    assert nearest_aspect(0.7, (0.5, 1.0)) == 0.5, "0.7 / 0.5 is less than 1 / 0.7"


def test_the_smallest_bucket_is_a_step_of_the_grid():
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


def sigmas_of(num_tokens: int = 16, count: int = 4000, **fields) -> torch.Tensor:
    spec = FlowSpec(**fields)
    return torch.stack([draw_sigma(spec, num_tokens, generator(0, number, "test")) for number in range(count)])


@pytest.mark.parametrize(
    ("fields", "num_tokens", "median"),
    [
        ({}, 16, 0.5),
        ({"flow_schedule_shift": 3.0}, 16, 0.75),
        ({"flow_schedule_auto_shift": True}, 4096, 3.158 / 4.158),
        ({"flow_use_uniform_schedule": True}, 16, 0.5),
        ({"flow_use_uniform_schedule": True, "flow_schedule_shift": 3.0}, 16, 0.75),
        ({"flow_use_beta_schedule": True, "flow_beta_schedule_alpha": 1.0, "flow_beta_schedule_beta": 3.0}, 16, 0.206),
    ],
)
def test_each_density_has_its_median(fields, num_tokens, median):
    sigmas = sigmas_of(num_tokens, **fields)
    assert sigmas.median().item() == pytest.approx(median, abs=0.02)
    assert sigmas.min() >= 0 and sigmas.max() <= 1 and sigmas.dtype == torch.float32


def test_the_sigmoid_scale_is_the_spread_of_the_logit():
    assert torch.logit(sigmas_of(flow_sigmoid_scale=0.5)).std().item() == pytest.approx(0.5, abs=0.02)


def test_listed_noise_levels_are_picked_as_they_are():
    assert set(sigmas_of(flow_custom_timesteps=(0.25, 0.5)).tolist()) == {0.25, 0.5}
    fast = sigmas_of(flux_fast_schedule=True)
    assert set(fast.tolist()) == {0.25, 0.5, 0.75, 1.0}
    assert (fast == 1).float().mean().item() == pytest.approx(0.7, abs=0.03)


def test_guidance_is_constant_or_drawn_from_its_range():
    def drawn(**fields) -> list[float]:
        return [draw_guidance(FlowSpec(**fields), generator(0, n, "test")).item() for n in range(200)]

    assert set(drawn(flux_guidance_value=3.5)) == {3.5}
    values = drawn(flux_guidance_mode="random-range", flux_guidance_min=1.0, flux_guidance_max=3.0)
    assert 1 <= min(values) < 1.1 and 2.9 < max(values) <= 3


def test_densities_and_shifts_that_exclude_each_other_are_refused():
    for fields, words in (
        ({"flux_fast_schedule": True, "flow_use_beta_schedule": True}, "exclude each other"),
        ({"flow_schedule_shift": 3.0, "flow_schedule_auto_shift": True}, "exclude each other"),
        ({"flux_fast_schedule": True, "flow_schedule_shift": 3.0}, "no effect"),
        ({"flow_custom_timesteps": (0.5, 1.5)}, "got 1.5"),
        ({"flux_guidance_min": 5.0}, "above flux_guidance_max"),
    ):
        with pytest.raises(ValueError, match=words):
            FlowSpec(**fields)


def test_huber_losses_are_square_near_zero_and_linear_far_away():
    width = torch.tensor(0.1)
    near, far = torch.tensor(1e-3), torch.tensor(100.0)
    assert flow.huber_loss(near, width).item() == pytest.approx(1e-6, rel=1e-3)
    assert flow.huber_loss(far, width).item() == pytest.approx(2 * 0.1 * 100, rel=1e-2)
    assert flow.smooth_l1_loss(near, width).item() == pytest.approx(1e-6 / 0.1, rel=1e-3)
    assert flow.smooth_l1_loss(far, width).item() == pytest.approx(200, rel=1e-2)
    assert flow.l2_loss(far, width).item() == 10_000


def test_the_huber_width_really_depends_on_sigma():
    sigma = torch.tensor([0.0, 0.5, 1.0])
    assert flow.huber_width(sigma, 0.1, "constant").tolist() == pytest.approx([0.1, 0.1, 0.1])
    assert flow.huber_width(sigma, 0.1, "exponential").tolist() == pytest.approx([1.0, 0.1**0.5, 0.1])
    assert flow.huber_width(sigma, 0.1, "snr").tolist() == pytest.approx([1.0, 0.325, 0.1])


def test_input_perturbation_noises_the_input_and_not_the_target():
    latent = torch.zeros(2, 16, 4, 4)

    def draw(step: int, **fields):
        return Objective(FlowSpec(**fields), torch.float32, seed=0).draw(latent, step, first=0)

    plain, perturbed = draw(0), draw(0, input_perturbation=0.1, input_perturbation_steps=10)
    assert torch.equal(plain.noise_BCHW, plain.input_noise_BCHW)
    assert torch.equal(plain.noise_BCHW, perturbed.noise_BCHW) and torch.equal(plain.sigma_B, perturbed.sigma_B)
    assert (perturbed.input_noise_BCHW - perturbed.noise_BCHW).std().item() == pytest.approx(0.1, abs=0.01)
    later = draw(5, input_perturbation=0.1, input_perturbation_steps=10)
    assert (later.input_noise_BCHW - later.noise_BCHW).std().item() == pytest.approx(0.05, abs=0.01)
    over = draw(10, input_perturbation=0.1, input_perturbation_steps=10)
    assert torch.equal(over.noise_BCHW, over.input_noise_BCHW)


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


@pytest.mark.parametrize(
    ("fields", "rates"),
    [
        ({"lr_scheduler": "constant"}, [1, 1, 1, 1, 1]),
        ({"lr_scheduler": "linear"}, [1, 0.75, 0.5, 0.25, 0]),
        ({"lr_scheduler": "linear", "lr_end": 0.2}, [1, 0.8, 0.6, 0.4, 0.2]),
        ({"lr_scheduler": "cosine"}, [1, 0.8536, 0.5, 0.1464, 0]),
        ({"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 2}, [1, 0.5, 1, 0.5, 1]),
        ({"lr_scheduler": "polynomial", "lr_power": 2.0}, [1, 0.5625, 0.25, 0.0625, 0]),
        ({"lr_scheduler": "sine"}, [0, 0.7071, 1, 0.7071, 0]),
        ({"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 24}, [0.04, 0.28, 0.52, 0.76, 1]),
    ],
)
def test_the_learning_rate_follows_its_course_over_the_run(fields, rates):
    spec = OptimizerSpec(learning_rate=1.0, **fields)
    assert [learning_rate_at(spec, step, 24) for step in (0, 6, 12, 18, 24)] == pytest.approx(rates, abs=1e-4)


def test_a_warm_up_comes_before_the_course():
    spec = OptimizerSpec(lr_scheduler="cosine", learning_rate=1.0, lr_warmup_steps=4)
    assert [learning_rate_at(spec, step, 24) for step in (0, 1, 2, 3, 4, 14)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 0.5])


def test_clipping_scales_the_whole_gradient_or_cuts_each_number():
    def clipped(**fields) -> tuple[list[float], float]:
        parameter = torch.nn.Parameter(torch.zeros(2))
        parameter.grad = torch.tensor([3.0, 4.0])
        norm = make_clip(OptimizerSpec(**fields))([parameter])
        return parameter.grad.tolist(), norm.item()

    assert clipped(max_grad_norm=1.0) == (pytest.approx([0.6, 0.8]), 5.0)
    assert clipped(max_grad_norm=10.0) == ([3.0, 4.0], 5.0)
    assert clipped(max_grad_norm=3.5, grad_clip_method="value") == ([3.0, 3.5], 5.0)


def test_the_running_mean_is_unbiased_at_its_start():
    assert running_mean([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
