"""Masks: found beside their pictures, brought to exactly where these go, and what they do to loss and routes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from support import encoded, job_data, make_pictures, opened, run_in_process, silent
from trainer_core import flow, tread
from trainer_core.data.batches import Visit, read_batch
from trainer_core.data.encode import Caches, encode_masks
from trainer_core.data.images import apply_fit, load_rgb, to_cells
from trainer_core.data.index import index_datasets
from trainer_core.data.sample import Sample
from trainer_core.data.upright import load_mask
from trainer_core.errors import JobError
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.job_file import parse_job
from trainer_core.objective import Objective
from trainer_core.run_dir import run_dir_for
from trainer_core.specs.dataset import DatasetSpec
from trainer_core.specs.flow import FlowSpec
from trainer_core.tread import Span


def masks_for(pictures: Path, folder: Path, draw) -> Path:
    """A mask for each picture; `draw(canvas, width, height)` paints the black one."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(pictures.glob("*.png")):
        with Image.open(path) as picture:
            mask = Image.new("L", picture.size)
        draw(ImageDraw.Draw(mask), *mask.size)
        mask.save(folder / path.name)
    return folder


def white(canvas, width, height):
    canvas.rectangle((0, 0, width, height), fill=255)


def left_half(canvas, width, height):
    canvas.rectangle((0, 0, width // 2 - 1, height), fill=255)


def index(pictures: Path, masks: Path, **fields) -> list[Sample]:
    spec = DatasetSpec(instance_data_dir=str(pictures), mask_data_dir=str(masks), caption_strategy="filename", **fields)
    return list(index_datasets((spec,), FLAVOURS["pico"]).samples)


def with_masks(samples: list[Sample], cache: Path) -> Caches:
    caches = opened(samples, cache)
    encode_masks(caches, samples, silent)
    return caches


def cells(samples: list[Sample], cache: Path) -> list[torch.Tensor]:
    caches = with_masks(samples, cache)
    return [caches.mask(sample, view) for sample in samples for view in range(len(sample.views))]


# Which mask belongs to which picture


def test_a_mask_has_its_pictures_path_and_name_and_any_suffix(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "deep" / "b.jpg")
    (tmp_path / "masks" / "deep").mkdir(parents=True)
    Image.new("L", (64, 64)).save(tmp_path / "masks" / "a.webp")
    Image.new("L", (64, 64)).save(tmp_path / "masks" / "deep" / "b.png")
    found = {sample.path.name: sample.mask.path.name for sample in index(tmp_path, tmp_path / "masks")}
    assert found == {"a.png": "a.webp", "b.jpg": "b.png"}, "and the masks further down are no pictures"
    Image.new("L", (64, 64)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(JobError, match=r"a\.png and .*a\.webp are masks of one picture, .*a\.png; leave one"):
        index(tmp_path, tmp_path / "masks")


def test_missing_masks_are_named_with_the_mend(tmp_path, pictures):
    masks_for(pictures, tmp_path / "masks", white)
    for number in range(5):
        (tmp_path / "masks" / f"ball_{number}.png").unlink()
    with pytest.raises(JobError) as caught:
        index(pictures, tmp_path / "masks")
    assert "ball_0.png" in str(caught.value) and "ball_2.png and 2 more; add a white picture" in str(caught.value)
    with pytest.raises(JobError, match=r"there is no folder .*nowhere with masks"):
        index(pictures, tmp_path / "nowhere")
    with pytest.raises(JobError, match="mask_data_dir is the folder of the pictures"):
        index(pictures, pictures)


def test_a_mask_may_have_another_size_but_not_another_shape(tmp_path):
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (120, 81)).save(tmp_path / "a.png")
    Image.new("L", (60, 40)).save(tmp_path / "masks" / "a.png")
    assert index(tmp_path, tmp_path / "masks")[0].mask.path.name == "a.png"
    Image.new("L", (81, 120)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(JobError, match=r"mask .*a\.png is 81x120, but its picture .*a\.png is 120x81; give it the picture's"):
        index(tmp_path, tmp_path / "masks")


def test_a_damaged_mask_is_named(tmp_path):
    (tmp_path / "masks").mkdir()
    for folder in (tmp_path, tmp_path / "masks"):
        drawing().save(folder / "a.jpg")
    samples = index(tmp_path, tmp_path / "masks")
    mask = tmp_path / "masks" / "a.jpg"
    mask.write_bytes(mask.read_bytes()[:2000])
    with pytest.raises(JobError, match=r"masks.a\.jpg cannot be read \(.*truncated"):
        with_masks(samples, tmp_path / "cache")


def test_the_run_folder_is_another_when_a_mask_changes(tmp_path, pictures):
    masks = masks_for(pictures, tmp_path / "masks", white)
    job = parse_job(job_data(pictures, datasets=[{"instance_data_dir": str(pictures), "mask_data_dir": str(masks)}]))
    first = run_dir_for(job, tmp_path).root
    assert run_dir_for(job, tmp_path).root == first
    Image.new("L", (96, 96)).save(masks / "ball_0.png")
    assert run_dir_for(job, tmp_path).root != first


# Where it comes to lie


def drawing() -> Image.Image:
    """Nothing about it is symmetric."""
    image = Image.new("RGB", (301, 173))
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 20, 130, 150), fill="white")
    draw.polygon([(180, 5), (290, 60), (200, 90)], fill=(128, 128, 128))
    draw.rectangle((270, 150, 300, 172), fill=(200, 200, 200))
    return image


def with_tag(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FORMS = [(form, turn) for form in ("tagged", "upright", "stored") for turn in range(1, 9) if form != "stored" or turn >= 5]


@pytest.mark.parametrize(("form", "orientation"), FORMS)
def test_a_mask_lies_exactly_where_its_picture_does(tmp_path, form, orientation):
    """Also where only the picture carries the camera's tag; without it a half turn or mirror cannot be told from the shape."""
    (tmp_path / "masks").mkdir()
    picture, mask = tmp_path / "a.png", tmp_path / "masks" / "a.png"
    drawing().save(picture, exif=with_tag(orientation))
    if form == "upright":
        load_rgb(picture).save(mask)
    else:
        drawing().save(mask, exif=with_tag(orientation) if form == "tagged" else None)
    (sample,) = index(tmp_path, tmp_path / "masks")
    assert sample.bucket.width < min(sample.facts.width, 200) and sample.bucket.width != sample.bucket.height
    seen = apply_fit(load_rgb(picture), sample.views[0], sample.bucket).convert("L")
    (found,) = cells([sample], tmp_path / "cache")
    assert found.shape == (sample.bucket.height // 8, sample.bucket.width // 8)
    assert torch.equal(found, to_cells(seen, 8))
    assert found.std() > 0.3


def test_a_small_mask_lies_where_the_large_one_does(tmp_path):
    (tmp_path / "masks").mkdir()
    drawing().save(tmp_path / "a.png")
    drawing().save(tmp_path / "masks" / "a.png")
    (large,) = cells(index(tmp_path, tmp_path / "masks"), tmp_path / "cache")
    drawing().resize((150, 86)).save(tmp_path / "masks" / "a.png")
    (small,) = cells(index(tmp_path, tmp_path / "masks"), tmp_path / "cache")
    assert not torch.equal(small, large) and (small - large).abs().mean() < 0.01


def test_a_masks_luminance_counts_and_nothing_else(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    path = tmp_path / "mask.png"
    half_clear = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    half_clear.paste((0, 0, 0, 255), (0, 0, 4, 8))
    deep = Image.fromarray(np.full((8, 8), 32896, dtype=np.uint16))
    for mask, mean in ((half_clear, 0.5), (deep, 128 / 255), (Image.new("1", (8, 8), 1), 1.0), (Image.new("RGB", (8, 8)), 0.0)):
        mask.save(path)
        assert to_cells(load_mask(path, tmp_path / "a.png"), 8).item() == pytest.approx(mean)


def test_cells_are_averages():
    stripes = Image.new("L", (16, 8))
    stripes.paste(255, (0, 0, 2, 8))
    assert to_cells(stripes, 8).tolist() == [[0.25, 0.0]]


def test_masks_are_cached_by_what_made_them(tmp_path, pictures):
    masks = masks_for(pictures, tmp_path / "masks", left_half)
    samples = index(pictures, masks)
    first = with_masks(samples, tmp_path)
    Image.new("L", (96, 96), 255).save(masks / "ball_0.png")
    second = opened(samples, tmp_path)
    assert [second.mask_name(sample, 0) in second.masks for sample in samples] == [False, *[True] * 5]
    encode_masks(second, samples, silent)
    assert [torch.equal(first.mask(sample), second.mask(sample)) for sample in samples] == [False, *[True] * 5]
    assert len(list((tmp_path / "masks").glob("shard-*"))) == 2


@pytest.mark.parametrize("background", [0.0, 0.1])
def test_a_mask_that_leaves_nothing_is_named(tmp_path, caplog, background):
    Image.new("RGB", (96, 64)).save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    Image.new("L", (96, 64)).save(tmp_path / "masks" / "a.png")
    fields = {"mask_background_weight": background}
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        with_masks(index(tmp_path, tmp_path / "masks", **fields), tmp_path / "cache")
        assert ("a.png is black wherever its picture is trained on" in caplog.text) == (background == 0)
    normalised = index(tmp_path, tmp_path / "masks", mask_normalise_area=True, **fields)
    if background:
        assert not with_masks(normalised, tmp_path / "cache").mask(normalised[0]).any()
    else:
        with pytest.raises(JobError, match=r"a\.png is black .*mask_normalise_area has nothing to divide by; paint it"):
            with_masks(normalised, tmp_path / "cache")


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_mask_lies_over_its_picture_in_every_crop_and_mirror_image(tmp_path, orientation):
    """The mask is the picture itself, so what is seen through either must be the same, pixel for pixel."""
    (tmp_path / "masks").mkdir()
    for folder in (tmp_path, tmp_path / "masks"):
        drawing().save(folder / "a.png", exif=with_tag(orientation))
    fields = {"crop": True, "crop_style": "random", "num_crops": 4, "horizontal_flip": True}
    fields |= {"maximum_image_size": 200, "target_downsample_size": 150}
    (sample,) = index(tmp_path, tmp_path / "masks", **fields)
    caches = encoded([sample], tmp_path / "cache")
    picture, found = load_rgb(tmp_path / "a.png"), []
    assert len(sample.views) == 8 and {fit.mirrored for fit in sample.views} == {False, True}
    for view, fit in enumerate(sample.views):
        found.append(caches.mask(sample, view))
        assert torch.equal(found[-1], to_cells(apply_fit(picture, fit, sample.bucket).convert("L"), 8))
    torch.testing.assert_close(found[4], found[0].flip(1))  # the fifth is the first in the mirror, summed the other way round
    assert len({tuple(mask.flatten().tolist()) for mask in found}) == 8


# The alpha channel as the mask


def seen_through(folder: Path, **fields) -> tuple[Sample, ...]:
    spec = DatasetSpec(instance_data_dir=str(folder), caption_strategy="filename", **fields)
    return index_datasets((spec,), FLAVOURS["pico"]).samples


def with_alpha(image: Image.Image) -> Image.Image:
    """Its own brightness is its alpha."""
    clear = image.copy()
    clear.putalpha(image.convert("L"))
    return clear


@pytest.mark.parametrize("orientation", range(1, 9))
def test_alpha_is_the_mask_and_goes_where_its_picture_goes(tmp_path, orientation):
    with_alpha(drawing()).save(tmp_path / "a.png", exif=with_tag(orientation))
    drawing().save(tmp_path / "opaque.png", exif=with_tag(orientation))
    fields = {"alpha_is_mask": True, "mask_background_weight": 0.25, "mask_normalise_area": True}
    crops = {"crop": True, "crop_style": "random", "num_crops": 3, "horizontal_flip": True}
    masked, opaque = seen_through(tmp_path, **fields, **crops)
    assert (masked.mask.path, masked.mask.background_weight, masked.mask.normalise_area) == (masked.path, 0.25, True)
    assert opaque.mask is None, "without transparency it has none"
    assert all(sample.mask is None for sample in seen_through(tmp_path)), "and nothing has one unless it is asked for"
    caches = encoded([masked], tmp_path / "cache")
    for view, fit in enumerate(masked.views):
        seen = apply_fit(load_rgb(tmp_path / "opaque.png"), fit, masked.bucket).convert("L")
        assert torch.equal(caches.mask(masked, view), to_cells(seen, 8))


def test_what_is_transparent_is_the_background_and_counts_as_little_as_it_is_told_to(tmp_path):
    clear = Image.new("RGBA", (64, 64), (200, 0, 0, 255))
    clear.paste((0, 200, 0, 0), (0, 0, 32, 64))
    clear.save(tmp_path / "a.png")
    (sample,) = seen_through(tmp_path, alpha_is_mask=True, mask_background_weight=0.25, background="#102030")
    picture = apply_fit(load_rgb(sample.path, sample.background), sample.views[0], sample.bucket)
    assert picture.getpixel((5, 5)) == (16, 32, 48) and picture.getpixel((60, 5)) == (200, 0, 0)
    batch = read_batch([Visit(sample, sample.caption)], encoded([sample], tmp_path / "cache"))
    assert batch.mask_BHW[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert batch.weight_BHW[0, 0].tolist() == [0.25] * 4 + [1] * 4


def test_a_file_that_is_both_a_mask_and_a_masked_picture_is_cached_as_either(tmp_path):
    """As a mask its brightness counts, as a masked picture its alpha."""
    (tmp_path / "masks").mkdir()
    clear = Image.new("RGBA", (64, 64), (255, 255, 255, 51))
    for folder in (tmp_path, tmp_path / "masks"):
        clear.save(folder / "a.png")
    bright, opaque = index(tmp_path, tmp_path / "masks"), seen_through(tmp_path / "masks", alpha_is_mask=True)
    assert [cells(list(samples), tmp_path / "cache")[0].mean().item() for samples in (bright, opaque)] == pytest.approx(
        [1, 0.2]
    )


def test_a_picture_that_is_transparent_all_over_is_named(tmp_path, caplog):
    Image.new("RGBA", (64, 64), (9, 9, 9, 0)).save(tmp_path / "a.png")
    with_masks(seen_through(tmp_path, alpha_is_mask=True), tmp_path / "cache")
    assert "a.png is transparent wherever its picture is trained on" in caplog.text
    with pytest.raises(JobError, match=r"a\.png is transparent .*mask_normalise_area has nothing to divide by"):
        with_masks(seen_through(tmp_path, alpha_is_mask=True, mask_normalise_area=True), tmp_path / "cache")


# What it does to the loss


@pytest.mark.parametrize(
    ("background", "normalise", "expected"),
    [
        (0.0, False, (4 * 1 + 0 * 9) / 8),
        (0.0, True, 1.0),
        (0.25, False, (4 * 1 + 0.25 * 4 * 9) / 8),
        (0.25, True, (4 * 1 + 0.25 * 4 * 9) / 8 / 0.625),
        (1.0, False, (4 * 1 + 4 * 9) / 8),
    ],
)
def test_the_loss_is_weighed_by_hand(background, normalise, expected):
    """Errors of 1 where the mask is white and 3 where it is black; only white has a gradient with no background."""
    mask = torch.tensor([[1.0, 0.0]] * 4)
    prediction = torch.zeros(2, 3, 4, 2, requires_grad=True)
    target = torch.tensor([1.0, 3.0]).expand(2, 3, 4, 2)
    weight = torch.stack([flow.mask_weight(mask, background, normalise), torch.ones(4, 2)])
    losses = Objective(FlowSpec(), torch.float32, 0).losses(prediction, target, torch.tensor([0.1, 0.7]), weight)
    assert losses.tolist() == pytest.approx([expected, 5.0])
    losses.sum().backward()
    assert (prediction.grad[0, :, :, 0] != 0).all() and (prediction.grad[1] != 0).all()
    assert (prediction.grad[0, :, :, 1] != 0).all() == (background > 0)


def test_a_batch_holds_masks_and_weights_and_a_sample_without_counts_in_full(tmp_path, pictures):
    masks = masks_for(pictures, tmp_path / "masks", left_half)
    masked = index(pictures, masks, mask_background_weight=0.5)[0]
    plain = index_datasets((DatasetSpec(id="other", instance_data_dir=str(pictures)),), FLAVOURS["pico"]).samples[0]
    samples = [masked, plain]
    caches = encoded(samples, tmp_path / "cache")
    batch = read_batch([Visit(sample, "") for sample in samples], caches)
    assert batch.mask_BHW[0].mean() == 0.5 and not batch.mask_BHW[1].any()
    assert batch.weight_BHW[0].mean() == 0.75 and (batch.weight_BHW[1] == 1).all()
    without = read_batch([Visit(plain, "")], caches)
    assert without.mask_BHW is None and without.weight_BHW is None


def trained(tmp_path: Path, pictures: Path, cache: Path, masks: Path | str, **parts) -> dict:
    dataset = {"instance_data_dir": str(pictures), "mask_data_dir": str(masks)} | parts.pop("dataset", {})
    data = job_data(pictures, datasets=[dataset], lora={"lora_save_precision": "fp32"}, **parts)
    data["training"]["max_train_steps"] = 2
    return run_in_process(parse_job(data), tmp_path, cache)


def test_white_masks_train_as_none_and_a_background_of_one_is_no_mask(tmp_path, cache):
    pictures = make_pictures(tmp_path / "square", 1)  # of which exactly half is left of the middle after the crop
    plain = trained(tmp_path, pictures, cache, "")["losses"]
    halves, whites = masks_for(pictures, tmp_path / "half", left_half), masks_for(pictures, tmp_path / "white", white)
    assert trained(tmp_path, pictures, cache, whites)["losses"] == plain
    assert trained(tmp_path, pictures, cache, halves, dataset={"mask_background_weight": 1.0})["losses"] == plain
    half = trained(tmp_path, pictures, cache, halves)["losses"]
    normalised = trained(tmp_path, pictures, cache, halves, dataset={"mask_normalise_area": True})["losses"]
    assert half[0] != plain[0] and normalised[0] == pytest.approx(2 * half[0], rel=1e-4)


# What it does to the routes


def test_marked_tokens_are_kept_on_every_route_that_is_to_keep_them():
    mask = torch.zeros(2, 8, 12)
    mask[0, :4, :4] = 1  # the first two tokens of two rows of six
    mask[0, 6, 10] = mask[0, 7, 11] = 1  # half of the last token, which is not above half
    spans = (Span(0.75, 0, 1), Span(0.75, 2, 3, keep_masked=False), Span(0.75, 4, 5))
    first, free, last = tread.draw_routes(spans, 24, mask, 0, 0, range(2))
    for kept in (first, last):
        assert {0, 1, 6, 7} <= set(kept[0].tolist()) and kept.shape == (2, 6)
    plain = tread.draw_routes(spans, 24, None, 0, 0, range(2))
    assert torch.equal(free, plain[1]) and torch.equal(first[1], plain[0][1]), "a sample without a mask draws as ever"
    assert [23 in tread.draw_routes(spans[:1], 24, mask, 0, step, [0])[0] for step in range(20)].count(True) < 15


def test_keep_masked_changes_what_a_routed_run_trains_only_where_there_are_masks(tmp_path, pictures, cache):
    halves = masks_for(pictures, tmp_path / "half", left_half)
    route = {"selection_ratio": 0.75, "start_layer_idx": 1, "end_layer_idx": -2}
    for masks, alike in ((halves, False), ("", True)):
        files = [
            load_file(trained(tmp_path, pictures, cache, masks, routes=[route | {"keep_masked": keep}])["lora"])
            for keep in (True, False)
        ]
        assert all(torch.equal(files[0][name], files[1][name]) for name in files[0]) == alike
