"""From folders to batches: what is found, what is said of the rest, and in which order it is shown."""

from collections import Counter

import torch
from PIL import Image

from support import batches_per_epoch, encoded, job_data, make_pictures, run_in_process
from trainer_core.data.batches import BatchPlan, Visit, read_batch
from trainer_core.data.buckets import Bucket, fit_centre
from trainer_core.data.images import apply_fit, load_rgb, to_image, to_tensor
from trainer_core.data.index import index_datasets
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.job_file import parse_job
from trainer_core.setup import prepare
from trainer_core.specs.dataset import DatasetSpec

PICO = FLAVOURS["pico"]
CPU = torch.device("cpu")


def index(folder, **fields):
    return list(index_datasets((DatasetSpec(instance_data_dir=str(folder), **fields),), PICO).samples)


def test_pictures_are_upright_opaque_and_cropped_in_the_centre(tmp_path):
    turned = Image.new("RGB", (40, 20), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert load_rgb(tmp_path / "turned.jpg").size == (20, 40)
    (tmp_path / "turned.txt").write_text("x")
    assert index(tmp_path)[0].facts[:2] == (20, 40)

    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_rgb(tmp_path / "clear.png").getpixel((4, 4)) == (255, 255, 255)

    stripes = Image.new("RGB", (30, 10), "red")
    stripes.paste("blue", (10, 0, 20, 10))
    bucket = Bucket(10, 10)
    assert apply_fit(stripes, fit_centre(30, 10, bucket), bucket).getcolors() == [(100, (0, 0, 255))]


def test_pixels_survive_the_way_through_a_tensor(pictures):
    image = load_rgb(pictures / "ball_3.png")
    assert to_image(to_tensor(image)).tobytes() == image.tobytes()


def plan(pictures, cache, **fields) -> BatchPlan:
    datasets = (DatasetSpec(instance_data_dir=str(pictures), repeats=fields.pop("repeats", 0)),)
    samples = index_datasets(datasets, PICO).samples
    options = {"batch_size": 2, "caption_dropout": 0.0, "seed": 5} | fields
    return BatchPlan(samples, encoded(samples, cache), **options)


def test_an_epoch_shows_every_picture_as_often_as_repeats_say(tmp_path, cache):
    folder = make_pictures(tmp_path, 7)  # buckets of 3, 2 and 2 pictures
    batches = plan(folder, cache, repeats=2).indices_of_epoch(0)
    assert Counter(index for batch in batches for index in batch) == dict.fromkeys(range(7), 3)
    assert len(batches) == 5 + 3 + 3
    samples = index(folder, repeats=2)
    assert batches_per_epoch(samples, 2) == 11
    assert all(len({samples[i].bucket for i in batch}) == 1 for batch in batches)


def test_the_order_is_a_function_of_seed_and_epoch(pictures, cache):
    order = [plan(pictures, cache).indices(number) for number in range(9)]
    later = plan(pictures, cache)
    assert later.indices(8) == order[8] and later.indices(0) == order[0]
    assert [plan(pictures, cache, seed=6).indices(number) for number in range(9)] != order
    assert order[:3] != order[3:6] or order[3:6] != order[6:9]


def test_a_batch_holds_latents_and_the_captions_of_its_pictures(pictures, cache):
    batch_plan = plan(pictures, cache)
    batch = batch_plan.batch(0)
    assert batch.latent_BCHW.shape[:2] == (2, 16)
    assert batch.text_BLD.shape[:2] == (2, 32) and batch.pooled_BP.ndim == 2
    assert all(name.endswith(".png") for name in batch.names)


def test_caption_dropout_replaces_the_whole_caption(pictures, cache):
    dropped = plan(pictures, cache, caption_dropout=1.0).batch(0)
    kept = plan(pictures, cache).batch(0)
    assert torch.equal(dropped.text_BLD[0], dropped.text_BLD[1])
    assert torch.equal(dropped.latent_BCHW, kept.latent_BCHW)
    assert not torch.equal(dropped.text_BLD, kept.text_BLD)
    assert not torch.equal(kept.text_BLD[0], kept.text_BLD[1])


def test_eval_pictures_are_indexed_and_encoded_but_never_trained_on(tmp_path, pictures, cache):
    data = job_data(pictures)
    plain = run_in_process(parse_job(data), tmp_path / "plain", cache)
    held_out = {"id": "held out", "instance_data_dir": str(make_pictures(tmp_path / "pictures", 4)), "dataset_type": "eval"}
    validation = data["validation"] | {"eval_steps_interval": 3}
    judged = parse_job(data | {"datasets": [held_out, *data["datasets"]], "validation": validation})
    assert run_in_process(judged, tmp_path / "judged", cache)["losses"] == plain["losses"]
    setup = prepare(judged)
    assert {sample.dataset_id for sample in setup.samples} == {"pictures"} and len(setup.eval_samples) == 4
    shown = setup.eval_samples[:1]
    batch = read_batch([Visit(sample, sample.caption) for sample in shown], encoded(setup.eval_samples, cache))
    assert batch.latent_BCHW.shape == (1, 16, 8, 8) and batch.names == (str(shown[0].path),)
