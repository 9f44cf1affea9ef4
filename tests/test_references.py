"""References: found by name, laid exactly over their pictures, fed to the model as diffusers' Kontext feeds them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from PIL import Image, ImageOps

from support import add_lora, batches_per_epoch, encoded, job_data, make_pictures, run_in_process
from trainer_core.data.batches import BatchPlan, Visit, read_batch
from trainer_core.data.buckets import Bucket, fit_centre
from trainer_core.data.encode import reference_of
from trainer_core.data.index import index_datasets
from trainer_core.data.sample import Index
from trainer_core.errors import JobError, StopRequested
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.flux.latents import image_ids
from trainer_core.flux.load import FluxShape, config, load_transformer
from trainer_core.flux.predict import predict_velocity
from trainer_core.flux.routing import TokenRouter
from trainer_core.job_file import parse_job
from trainer_core.objective import Objective
from trainer_core.plan.phases import disk_bytes, largest_pass, training_work
from trainer_core.plan.plan import alternatives
from trainer_core.setup import prepare
from trainer_core.specs.dataset import DatasetSpec
from trainer_core.step import flow_loss

SHAPE = FluxShape(num_double=1, num_single=2, width=128, in_channels=64, t5_width=16, clip_width=8, guidance=True)
WORDS = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)


def index(pictures: Path, references: Path, **fields: object) -> Index:
    spec = DatasetSpec(instance_data_dir=str(pictures), reference_data_dir=str(references), **fields)
    return index_datasets((spec,), FLAVOURS["pico"])


def make_references(folder: Path, pictures: Path, turn=ImageOps.invert) -> Path:
    """A reference of each picture, made from it."""
    folder.mkdir()
    for path in pictures.glob("*.png"):
        with Image.open(path) as image:
            turn(image).save(folder / path.name)
    return folder


@pytest.fixture(scope="module")
def references(tmp_path_factory, pictures) -> Path:
    return make_references(tmp_path_factory.mktemp("data") / "references", pictures)


def pairs(pictures: Path, references: Path, **parts: object) -> dict:
    data = job_data(pictures, **parts)
    data["datasets"][0]["reference_data_dir"] = str(references)
    return data


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def small_flux() -> FluxTransformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return FluxTransformer2DModel(**config(SHAPE)).requires_grad_(False).eval()


def inputs(batch: int = 2) -> list[torch.Tensor]:
    """x, sigma, text, pooled, guidance."""
    sigma, guidance = torch.tensor([1.0, 0.4])[:batch], torch.tensor([2.5, 2.5])[:batch]
    return [random(2, 16, 8, 12)[:batch], sigma, random(2, 5, 16, seed=1)[:batch], random(2, 8, seed=2)[:batch], guidance]


# Pairs


def test_a_reference_has_the_path_and_name_of_its_picture_and_any_suffix(tmp_path):
    pictures, references = make_pictures(tmp_path / "pictures", 2), tmp_path / "references"
    deep = make_pictures(pictures / "deep", 1)
    for name in ("ball_0.jpg", "ball_1.png", "deep/ball_0.webp", "of nothing.png"):
        (references / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 48) if name != "ball_1.png" else (60, 40), "red").save(references / name)
    found = {sample.path: sample.reference.path for sample in index(pictures, references).samples}
    assert found == {
        pictures / "ball_0.png": references / "ball_0.jpg",
        pictures / "ball_1.png": references / "ball_1.png",
        deep / "ball_0.png": references / "deep" / "ball_0.webp",
    }
    assert index_datasets((DatasetSpec(instance_data_dir=str(pictures)),), FLAVOURS["pico"]).samples[0].reference is None


def test_pictures_without_a_reference_are_named_with_the_mend(pictures, tmp_path):
    with pytest.raises(JobError, match=r"no folder .*nowhere with references; correct reference_data_dir"):
        index(pictures, tmp_path / "nowhere")
    with pytest.raises(JobError, match="reference_data_dir is the folder of the pictures; put the references into one"):
        index(pictures, pictures)
    some = make_references(tmp_path / "references", pictures)
    for number in range(5):
        (some / f"ball_{number}.png").unlink()
    with pytest.raises(JobError, match=r"no reference in .*ball_0.png, .*ball_1.png, .*ball_2.png and 2 more; add what each"):
        index(pictures, some)


def test_two_references_of_one_picture_are_an_error_and_two_of_none_are_not(pictures, tmp_path):
    some = make_references(tmp_path / "references", pictures)
    for name in ("other.png", "other.jpg"):
        Image.new("RGB", (8, 8)).save(some / name)
    index(pictures, some)
    Image.new("RGB", (96, 96)).save(some / "ball_0.jpg")
    with pytest.raises(JobError, match=r"ball_0.jpg and .*ball_0.png are references of one picture, .*ball_0.png; leave one"):
        index(pictures, some)


def test_references_below_the_pictures_are_no_pictures_and_may_stand_above_them(tmp_path):
    pictures = make_pictures(tmp_path / "pictures", 3)
    inside = make_references(pictures / "from", pictures)
    assert len(index(pictures, inside).samples) == 3
    above = tmp_path / "above"
    below = make_pictures(above / "to", 3)
    for path in below.glob("*.png"):
        path.with_suffix(".txt").rename(below / f"{path.stem}.txt")
        with Image.open(path) as image:
            image.save(above / path.name)
    assert {sample.reference.path.parent for sample in index(below, above).samples} == {above}


def test_a_damaged_reference_leaves_out_its_picture_alone(pictures, tmp_path):
    some = make_references(tmp_path / "references", pictures)
    (some / "ball_2.png").write_bytes(b"no picture")
    found = index(pictures, some)
    assert len(found.samples) == 5
    ((_, path, reason),) = found.rejected
    assert path.name == "ball_2.png" and reason.startswith(f"its reference {some / 'ball_2.png'} is ")


# Geometry


def test_strict_a_reference_of_any_size_goes_where_its_picture_goes(pictures, tmp_path):
    larger = make_references(tmp_path / "larger", pictures, lambda image: image.resize((2 * image.width, 2 * image.height)))
    for sample in index(pictures, larger, horizontal_flip=True).samples:
        assert sample.reference.bucket == sample.bucket and sample.reference.views == sample.views
        assert sample.reference.facts.width == 2 * sample.facts.width and sample.shape == (sample.bucket, sample.bucket)


def test_strict_a_reference_of_another_shape_is_told_with_both_sizes_and_loose_it_is_taken(pictures, tmp_path):
    wide = make_references(tmp_path / "wide", pictures, lambda image: image.resize((160, 80)))
    with pytest.raises(
        JobError, match=r"is 160x80, but its picture .* is 96x96; give it .* or set reference_geometry to 'loose'"
    ):
        index(pictures, wide)
    samples = index(pictures, wide, reference_geometry="loose", horizontal_flip=True).samples
    bucket = Bucket(96, 48)
    fit = fit_centre(160, 80, bucket)
    assert {sample.reference.bucket for sample in samples} == {bucket}
    assert {sample.reference.views for sample in samples} == {(fit, fit._replace(mirrored=True))}
    assert {sample.shape for sample in samples} == {(Bucket(*size), bucket) for size in ((64, 64), (80, 48), (48, 80))}


def test_a_loose_reference_follows_the_resolution_and_not_the_limits_and_crops_of_the_pictures(pictures, tmp_path):
    tiny = make_references(tmp_path / "tiny", pictures, lambda image: image.resize((40, 20)))
    fields = {"crop": True, "minimum_image_size": 60, "maximum_aspect_ratio": 1.8}
    samples = index(pictures, tiny, reference_geometry="loose", resolution=(64, 128), **fields).samples
    assert {sample.reference.bucket for sample in samples} == {Bucket(96, 48), Bucket(176, 96)}


def test_a_strict_reference_that_is_the_picture_itself_has_its_latents_in_every_view(pictures, tmp_path, cache):
    same = make_references(tmp_path / "same", pictures, lambda image: image)
    samples = index(pictures, same, horizontal_flip=True).samples
    caches = encoded(samples, cache)
    for sample in samples:
        for view in range(2):
            assert torch.equal(caches.reference(sample, view), caches.latent(sample, view))
        assert not torch.equal(caches.reference(sample, 0), caches.reference(sample, 1))


def test_a_strict_reference_of_twice_the_size_lies_over_its_picture(tmp_path, cache):
    """A disc left of the middle, cropped and mirrored: the same disc, from a reference that is drawn twice as large."""
    pictures = make_pictures(tmp_path / "pictures", 2)
    large = make_references(tmp_path / "large", pictures, lambda image: image.resize((2 * image.width, 2 * image.height)))
    samples = index(pictures, large, horizontal_flip=True).samples
    caches = encoded(samples, cache)
    for sample in samples:
        for view in range(2):
            own, other = caches.latent(sample, view), caches.latent(sample, 1 - view)
            reference = caches.reference(sample, view)
            assert (reference - own).norm() < 0.35 * (reference - other).norm()


def test_a_changed_reference_encodes_itself_alone(tmp_path):
    pictures = make_pictures(tmp_path / "pictures", 3)
    some, cache = make_references(tmp_path / "references", pictures), tmp_path / "cache"
    first = index(pictures, some).samples
    before = encoded(first, cache)
    Image.new("RGB", (96, 96), "green").save(some / "ball_0.png")
    second = index(pictures, some).samples
    missing = {
        reference_of(sample, 0).path for sample in second if before.latent_name(reference_of(sample, 0)) not in before.latents
    }
    assert missing == {some / "ball_0.png"}
    after = encoded(second, cache)
    assert not torch.equal(after.reference(second[0]), before.reference(first[0]))
    assert torch.equal(after.reference(second[1]), before.reference(first[1]))


# Batches


def test_a_batch_shares_the_bucket_of_its_pictures_and_that_of_their_references(tmp_path, cache):
    pictures, some = make_pictures(tmp_path / "pictures", 6), tmp_path / "references"
    some.mkdir()
    for number in range(6):
        Image.new("RGB", (80, 160) if number < 3 else (96, 96), "red").save(some / f"ball_{number}.png")
    samples = index(pictures, some, reference_geometry="loose", repeats=1).samples
    plan = BatchPlan(samples, encoded(samples, cache), batch_size=4, caption_dropout=0, seed=0)
    assert batches_per_epoch(samples, 4) == 6
    for number in range(6):
        assert len({samples[i].shape for i in plan.indices(number)}) == 1
        batch = plan.batch(number)
        width, height = samples[plan.indices(number)[0]].reference.bucket
        assert batch.reference_BCHW.shape == (len(batch.names), 16, height // 8, width // 8)
        assert batch.num_reference_tokens == width * height // 256
    with pytest.raises(AssertionError, match="a batch of"):
        read_batch([Visit(samples[0], ""), Visit(samples[3], "")], encoded(samples, cache))


def test_a_mirrored_view_comes_with_its_mirrored_reference(pictures, references, cache):
    sample = index(pictures, references, horizontal_flip=True).samples[0]
    caches = encoded([sample], cache)
    batch = read_batch([Visit(sample, "", 0), Visit(sample, "", 1)], caches)
    assert torch.equal(batch.reference_BCHW, torch.stack([caches.reference(sample, 0), caches.reference(sample, 1)]))


# The model


@torch.no_grad()
def test_the_model_is_fed_what_diffusers_kontext_feeds_it():
    """The pipeline itself, over one sampler step from 1 to 0: what it takes away is the velocity."""
    transformer, (x, _, text, pooled, guidance), reference = small_flux(), inputs(), random(2, 16, 6, 10, seed=3)
    kontext = FluxKontextPipeline(FlowMatchEulerDiscreteScheduler(shift=1.0), None, None, None, None, None, transformer)
    kontext.set_progress_bar_config(disable=True)
    noise = kontext._pack_latents(x, 2, 16, 8, 12)
    made = kontext(
        image=reference,
        latents=noise,
        prompt_embeds=text,
        pooled_prompt_embeds=pooled,
        height=64,
        width=96,
        max_area=64 * 96,
        num_inference_steps=1,
        guidance_scale=2.5,
        output_type="latent",
    ).images
    ours = predict_velocity(transformer, x, torch.ones(2), text, pooled, guidance, None, reference)
    torch.testing.assert_close(ours, kontext._unpack_latents(noise - made, 64, 96, 8), atol=1e-5, rtol=1e-5)
    without = predict_velocity(transformer, x, torch.ones(2), text, pooled, guidance)
    assert not torch.allclose(ours, without, atol=1e-3)


def test_positions_of_a_reference_begin_anew_in_a_plane_of_their_own():
    theirs = FluxKontextPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32)
    theirs[..., 0] = 1
    assert torch.equal(image_ids(6, 10, is_reference=True), theirs)


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, WORDS, WORDS.float()], ids=["no mask", "hard", "additive"])
def test_a_sample_with_its_reference_does_not_depend_on_the_others(mask):
    transformer, data, reference = small_flux(), inputs(), random(2, 16, 6, 10, seed=3)
    together = predict_velocity(transformer, *data, mask, reference)
    for b in range(2):
        alone = predict_velocity(
            transformer, *(value[b : b + 1] for value in data), None if mask is None else mask[b : b + 1], reference[b : b + 1]
        )
        torch.testing.assert_close(together[b : b + 1], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hidden_padding_hides_no_token_of_the_reference():
    """With the padding cut off instead of hidden, the model says the same."""
    transformer, (x, sigma, text, pooled, guidance), reference = small_flux(), inputs(1), random(1, 16, 6, 10, seed=3)
    hidden = predict_velocity(transformer, x, sigma, text, pooled, guidance, WORDS[:1], reference)
    cut = predict_velocity(transformer, x, sigma, text[:, :3], pooled, guidance, None, reference)
    torch.testing.assert_close(hidden, cut, atol=1e-5, rtol=1e-5)


# The step


def judged(data: dict, cache: Path, *, only: str = "pictures", off_start: float = 0.0) -> tuple[list[float], int]:
    """The losses of a first batch of two from one dataset, and how many tokens a block inside the routes saw. The LoRA is that
    far off its start."""
    setup = prepare(parse_job(data))
    transformer = load_transformer(setup.files.transformer, torch.float32, setup.device)
    for parameter in add_lora(transformer, setup.job.lora).values():
        parameter.data.add_(off_start * random(*parameter.shape))
    seen = []
    transformer.single_transformer_blocks[0].attn.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["image_rotary_emb"][0].shape[-2]), with_kwargs=True
    )
    samples = [sample for sample in setup.samples if sample.dataset_id == only]
    plan = BatchPlan(samples, encoded(samples, cache), batch_size=2, caption_dropout=0, seed=0)
    objective, router = Objective(setup.job.flow, torch.float32, 0), TokenRouter(transformer, setup.spans)
    outcome = flow_loss(transformer, plan.batch(0), objective, router, step=0, first=0)
    return outcome.losses_B.tolist(), seen[-1]


def test_routes_leave_out_tokens_of_the_picture_and_none_of_the_reference(pictures, references, cache):
    routes = [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": 4}]
    plain, all_tokens = judged(pairs(pictures, references), cache)
    routed, fewer = judged(pairs(pictures, references, routes=routes), cache)
    own = (all_tokens - FLAVOURS["pico"].t5_max_length) // 2
    assert own > 10 and all_tokens - fewer == round(own * 0.5) and routed != plain


def test_regularisation_samples_are_taught_with_their_references(pictures, references, cache):
    """An adapter at its start says what the base says: the loss is nothing only if both are shown the same."""
    data = pairs(pictures, references)
    data["datasets"][0] |= {"id": "calm", "is_regularisation_data": True}
    data["datasets"].append({"instance_data_dir": str(pictures)})
    assert max(judged(data, cache, only="calm")[0]) < 1e-10
    changed, _ = judged(data, cache, only="calm", off_start=0.1)
    data["datasets"][0]["reference_data_dir"] = ""
    assert changed != judged(data, cache, only="calm", off_start=0.1)[0] and min(changed) > 1e-6


def test_the_geometry_of_references_changes_what_is_trained(tmp_path, cache):
    """The shapes are one but for whole pixels, so either reference_geometry takes it, and each resizes it by another size."""
    pictures = make_pictures(tmp_path / "pictures", 2)
    for path in pictures.glob("*.png"):
        Image.new("RGB", (24, 20), "blue").save(path)
    bars = Image.linear_gradient("L").rotate(90).resize((12, 11)).convert("RGB")
    small = make_references(tmp_path / "small", pictures, lambda image: bars)
    found = []
    for geometry in ("strict", "loose"):
        data = pairs(pictures, small)
        data["datasets"][0]["reference_geometry"] = geometry
        found.append(judged(data, cache)[0])
    assert found[0] != found[1]


# Runs


def test_a_run_depends_on_its_references_and_goes_on_exactly(tmp_path, pictures, references, cache):
    short = {"max_train_steps": 4}
    job = parse_job(pairs(pictures, references, training=short))
    whole = run_in_process(job, tmp_path / "whole", cache)
    without = run_in_process(parse_job(job_data(pictures, training=short)), tmp_path / "without", cache)
    assert all(one != other for one, other in zip(whole["losses"], without["losses"], strict=True))
    with pytest.raises(StopRequested):
        run_in_process(job, tmp_path / "stopped", cache, stop_before=2)
    resumed = run_in_process(job, tmp_path / "stopped", cache)
    assert resumed["losses"] == whole["losses"]
    assert Path(resumed["lora"]).read_bytes() == Path(whole["lora"]).read_bytes()


def test_held_out_pairs_are_judged_with_their_references(tmp_path, pictures, references, cache):
    other = make_references(tmp_path / "other", pictures, lambda image: image.rotate(180))
    found = {}
    for folder in ("", str(references), str(other)):
        data = job_data(pictures, validation={"eval_steps_interval": 6, "num_eval_images": 2, "eval_timesteps": 1})
        held_out = {"id": "held-out", "dataset_type": "eval", "instance_data_dir": str(pictures), "reference_data_dir": folder}
        data["datasets"].append(held_out)
        data["training"] |= {"max_train_steps": 1}
        found[folder] = run_in_process(parse_job(data), tmp_path / f"runs {len(found)}", cache)["evaluations"][0]["loss"]
    assert len(set(found.values())) == 3


# What the job is told


def told(pictures: Path, references: Path | str, flavour: str, **validation: str) -> None:
    """Prepare a job for a base of this flavour; the files are pico's."""
    names = ("transformer", "vae", "clip_l", "t5", "clip_tokenizer", "t5_tokenizer")
    base = {f"{name}_path": str(getattr(PICO_FILES, name)) for name in names} | {"model_flavour": flavour}
    data = pairs(pictures, references, base=base, validation={"num_validation_images": 1} | validation)
    if not references:
        data["datasets"][0].pop("reference_data_dir")
    prepare(parse_job(data))


@pytest.mark.parametrize("flavour", ["dev", "krea", "fluxbooru"])
def test_a_base_that_never_learned_to_start_from_a_picture_is_refused(pictures, references, flavour):
    with pytest.raises(JobError, match=f"but {flavour} never learned to start from a picture; choose kontext as model_flavour"):
        told(pictures, references, flavour)
    with pytest.raises(JobError, match=f"validation_reference_path is given, but {flavour} never learned to start"):
        told(pictures, "", flavour, validation_reference_path=str(references))
    told(pictures, "", flavour)


def test_kontext_without_references_is_warned_of_and_with_them_nothing_is_said(pictures, references, caplog):
    told(pictures, "", "kontext")
    assert (
        "kontext is trained here without reference pictures, as a text-to-image model; give reference_data_dir" in caplog.text
    )
    caplog.clear()
    told(pictures, references, "kontext")
    assert not caplog.records


def test_the_plan_counts_the_tokens_and_latents_of_references(pictures, references):
    plain, double = (prepare(parse_job(data)) for data in (job_data(pictures), pairs(pictures, references)))
    one, two = largest_pass(plain), largest_pass(double)
    assert two.num_tokens == one.num_tokens == 16 and two.num_joint - one.num_joint == 16
    assert disk_bytes(double)["latents"] == 2 * disk_bytes(plain)["latents"]
    large = Bucket(1024, 1024)
    samples = [sample._replace(bucket=large, reference=sample.reference._replace(bucket=large)) for sample in double.samples]
    shrunk = next(
        setup
        for change, setup in alternatives(replace(double, samples=tuple(samples)))
        if change == {"datasets.resolution": 512}
    )
    assert largest_pass(shrunk).reference == (512, 512)


def test_the_plan_counts_the_work_on_references(pictures, references):
    plain, double = (prepare(parse_job(data)) for data in (job_data(pictures), pairs(pictures, references)))
    assert training_work(double, largest_pass(double)) > 1.2 * training_work(plain, largest_pass(plain))
