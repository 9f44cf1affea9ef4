"""The report on a dataset: its numbers, its faults, its picture, and the command that prints it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from support import Command, batches_per_epoch, job_data, make_pictures, run_in_process
from trainer_core.data.buckets import Bucket, Fit
from trainer_core.data.index import index_datasets
from trainer_core.data.report import CacheState, group_reasons, make_report
from trainer_core.data.sample import Facts, Index, Reference, Rejected, Sample
from trainer_core.data.sheet import CELL, COLUMNS, FRAME, GAP, MARGIN, TITLE, WIDTH, draw_sheet
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.job_file import parse_job
from trainer_core.specs.dataset import DatasetSpec

PICO = FLAVOURS["pico"]
SQUARE = Bucket(64, 64)


def report_on(*specs: DatasetSpec, batch_size: int = 2):
    return make_report(index_datasets(specs, PICO), specs, batch_size)


def sample(name: str, caption: str = "a ball", size: tuple[int, int] = (64, 64), bucket: Bucket = SQUARE, **changes) -> Sample:
    facts = Facts(*size, digest=name)
    return Sample("pictures", name, (caption,), facts, bucket, (Fit(*bucket, 0, 0),), **changes)


def faults_of(samples: list[Sample], batch_size: int = 1, **fields) -> dict[str, tuple[str, str]]:
    """What is found fault with, by its kind: the sentence and the mend."""
    spec = DatasetSpec(instance_data_dir="nowhere", **fields)
    report = make_report(Index(tuple(samples)), (spec,), batch_size)
    return {fault.kind: (fault.text, fault.mend) for fault in report.faults}


def test_pictures_passes_and_batches_are_counted(pictures):
    spec = DatasetSpec(instance_data_dir=str(pictures), resolution=(48, 64), repeats=1)
    report, index = report_on(spec), index_datasets((spec,), PICO)
    (part,) = report.parts
    assert (part.pictures, part.resolutions, part.passes, part.per_epoch, part.latents) == (6, 2, 2, 24, 12)
    names = ["32x64", "48x48", "48x80", "64x32", "64x64", "80x48"]
    assert [(str(bucket), *counts) for bucket, *counts in part.buckets] == [(name, 2, 4, 2) for name in names]
    assert part.sizes[:3] == ((96, 96), (80, 120), (120, 80))
    assert part.sizes.enlarged == 0
    assert report.steps_per_epoch == part.batches == batches_per_epoch(index.samples, 2)


def test_the_total_is_of_what_is_trained_on(pictures, tmp_path):
    held = make_pictures(tmp_path / "held", 3)
    trained = DatasetSpec(id="trained", instance_data_dir=str(pictures))
    twice = DatasetSpec(id="twice", instance_data_dir=str(pictures), repeats=1, is_regularisation_data=True)
    judged = DatasetSpec(id="judged", instance_data_dir=str(held), dataset_type="eval")
    off = DatasetSpec(id="off", instance_data_dir="nowhere", disabled=True)
    report = report_on(trained, twice, judged, off, batch_size=4)
    assert [part.purpose for part in report.parts] == ["trained on", "regularisation", "evaluation", "disabled"]
    assert [part.pictures for part in report.parts] == [6, 6, 3, 0]
    assert (report.total.pictures, report.total.per_epoch) == (6, 18)
    assert report.steps_per_epoch == 3 * 1 + 3 * 1
    assert "in all: 6 pictures to train on, 18 an epoch" in report.describe()


def test_accumulation_makes_fewer_steps(pictures):
    spec = DatasetSpec(instance_data_dir=str(pictures))
    report = make_report(index_datasets((spec,), PICO), (spec,), 1, accumulation=4)
    assert report.steps_per_epoch == 2
    assert "steps per epoch: 2 at batch size 1, 4 batches a step" in report.describe()


def test_references_of_several_shapes_are_batches_of_their_own():
    shapes = (SQUARE, SQUARE, Bucket(80, 48))
    references = [Reference(Path("r.png"), Facts(64, 64, "r"), shape, (Fit(*shape, 0, 0),)) for shape in shapes]
    samples = [sample(f"{n}.png", reference=reference) for n, reference in enumerate(references)]
    report = make_report(Index(tuple(samples)), (DatasetSpec(instance_data_dir="nowhere"),), 4)
    assert [(bucket.pictures, bucket.batches) for bucket in report.parts[0].buckets] == [(3, 2)]


def test_captions_masks_and_references_are_counted():
    facts = Facts(64, 64, "r")
    reference = Reference(Path("r.png"), facts, SQUARE, (Fit(64, 64, 0, 0),))
    samples = [sample("a.png", ""), sample("b.png", "one two three", reference=reference), sample("c.png", "one")]
    samples[0] = samples[0]._replace(captions=("", "x"))
    spec = DatasetSpec(instance_data_dir="nowhere")
    report = make_report(Index(tuple(samples)), (spec,), 1)
    captions = report.total.captions
    assert (captions.distinct, captions.shortest, captions.longest, captions.empty, captions.most_forms) == (
        3,
        "",
        "one two three",
        1,
        2,
    )
    assert (report.total.masks, report.total.references) == (0, 1)
    assert "references  1 of 3 pictures have one" in report.describe()


def test_masks_are_counted_among_the_pictures(pictures, tmp_path):
    for path in pictures.glob("*.png"):
        with Image.open(path) as picture:
            (tmp_path / "masks").mkdir(exist_ok=True)
            Image.new("L", picture.size, 255).save(tmp_path / "masks" / path.name)
    report = report_on(DatasetSpec(instance_data_dir=str(pictures), mask_data_dir=str(tmp_path / "masks")))
    assert report.total.masks == 6
    assert "masks       6 of 6 pictures have one" in report.describe()


def test_what_is_left_out_is_grouped_by_reason_and_json_has_it_all():
    rejected = tuple(Rejected("pictures", Path(f"/p/{n}.png"), f"{n}.png is {n}x9, below 64") for n in range(10, 18))
    rejected += (Rejected("pictures", Path("/p/odd.png"), "picture /p/odd.png cannot be read (no '/p/odd.png'); replace it"),)
    groups = {reason: len(paths) for reason, paths in group_reasons(rejected).items()}
    assert groups == {"is …x9, below 64": 8, "picture cannot be read (no); replace it": 1}
    spec = DatasetSpec(instance_data_dir="/p")
    report = make_report(Index((sample("a.png"),), rejected), (spec,), 1)
    assert "left out: 9 files" in report.describe()
    assert "[10.png, 11.png, 12.png, 13.png, 14.png and 3 more]" in report.describe()
    assert len(report.to_json()["parts"][0]["rejected"]) == 9


def test_the_json_is_plain(pictures):
    data = report_on(DatasetSpec(instance_data_dir=str(pictures))).to_json()
    assert json.loads(json.dumps(data)) == data
    assert data["parts"][0]["buckets"][0]["pictures"] == 2
    assert data["total"]["batches"] == 3


def test_the_cache_is_asked_for_what_is_encoded(pictures):
    spec = DatasetSpec(instance_data_dir=str(pictures))
    index = index_datasets((spec,), PICO)
    report = make_report(index, (spec,), 1, encoded=lambda samples: CacheState(1, len(samples), 2, 7))
    assert "cache: 1 of 6 latents and 2 of 7 captions are encoded" in report.describe()
    assert report.to_json()["cache"] == {"latents": 1, "of_latents": 6, "captions": 2, "of_captions": 7}


def test_the_same_picture_twice_is_named_once_for_all_resolutions(tmp_path):
    folder = make_pictures(tmp_path, 3)
    (folder / "copy.png").write_bytes((folder / "ball_1.png").read_bytes())
    (folder / "copy.txt").write_text("a copy")
    report = report_on(DatasetSpec(instance_data_dir=str(folder), resolution=(48, 64)))
    assert [sorted(path.name for path in group) for group in report.duplicates] == [["ball_1.png", "copy.png"]]
    assert "same content: 1 group of pictures\n  ball_1.png, copy.png" in report.describe()


def test_nothing_to_mend_is_said(pictures):
    report = report_on(DatasetSpec(instance_data_dir=str(pictures)))
    assert report.faults == () and report.describe().endswith("nothing to mend was found")


def test_a_few_small_pictures_are_named_with_how_much_they_are_enlarged():
    samples = [sample(f"{n}.png") for n in range(3)] + [sample("tiny.png", size=(16, 16))]
    text, mend = faults_of(samples)["small_pictures"]
    assert text == "1 of 4 pictures very small for the base's resolution: enlarged up to 4.0 times"
    assert "minimum_image_size" in mend
    assert "small_pictures" not in faults_of([sample("a.png"), sample("b.png", size=(44, 44))])


def test_a_resolution_far_above_most_pictures_is_one_fault():
    samples = [sample(f"{n}.png", size=(32, 32)) for n in range(3)] + [sample("large.png")]
    found = faults_of(samples, resolution=64)
    assert "small_pictures" not in found
    text, mend = found["resolution_above_pictures"]
    assert text.startswith("resolution 64 is far above 3 of 4 pictures: they are enlarged up to 2.0 times")
    assert "half of the pictures have 32x32 pixels or fewer" in mend


def test_captions_that_are_empty_or_all_the_same_are_faults():
    assert "empty_captions" in faults_of([sample("a.png", " "), sample("b.png", "x")])
    same = [sample("a.png"), sample("b.png")]
    assert "all 2 pictures have the same caption, 'a ball'" in faults_of(same)["same_captions"][0]
    assert "same_captions" not in faults_of(same, caption_strategy="instanceprompt", instance_prompt="a ball")
    assert "same_captions" not in faults_of([sample("a.png", "x"), sample("b.png", "y")])


def test_captions_without_the_trigger_word_are_found_where_none_is_set():
    samples = [sample(f"{n}.png", f"ohwx man, {word}") for n, word in enumerate(("red", "blue", "green", "tall", "old"))]
    assert "no_trigger_word" not in faults_of(samples)
    text, mend = faults_of([*samples, sample("x.png", "a house")])["no_trigger_word"]
    assert text == "1 of 6 captions without 'ohwx', which the others share" and "trigger_word to 'ohwx'" in mend
    assert "no_trigger_word" not in faults_of([*samples, sample("x.png", "sks a house")], trigger_word="sks")


def test_shuffling_with_one_variant_is_a_fault():
    samples = [sample("a.png", "x, y")]
    assert "caption_variants is 1" in faults_of(samples, shuffle_tags=True)["one_variant"][0]
    assert "one_variant" not in faults_of(samples, shuffle_tags=True, caption_variants=4)


def test_one_bucket_with_nearly_all_pictures_is_a_fault_unless_it_was_asked_for():
    samples = [sample(f"{n}.png", f"ball {n}") for n in range(9)] + [sample("w.png", "w", (120, 80), Bucket(80, 48))]
    assert faults_of(samples)["full_bucket"][0] == "bucket 64x64 holds 9 of 10 pictures: hardly another shape is learned"
    assert "full_bucket" not in faults_of(samples, crop=True)
    assert "full_bucket" not in faults_of(samples[5:])


def test_buckets_smaller_than_the_batch_are_named_with_what_happens_to_them():
    samples = [sample("a.png", "a", passes=2), sample("w.png", "w", (120, 80), Bucket(80, 48))]
    text, mend = faults_of(samples, batch_size=2)["small_buckets"]
    assert text == "1 of 2 buckets holds less than a batch of 2, so their batches are smaller: 80x48 (1)"
    assert "raise repeats" in mend
    assert "small_buckets" not in faults_of(samples, batch_size=1)


def test_what_is_only_judged_is_not_asked_for_a_trigger_word():
    samples = [sample("a.png"), sample("b.png"), sample("c.png", "")]
    assert faults_of(samples, dataset_type="eval").keys() == {"empty_captions"}


def test_pictures_that_are_judged_and_trained_on_are_named(pictures, tmp_path):
    held = make_pictures(tmp_path / "held", 1)
    (held / "copy.png").write_bytes((pictures / "ball_4.png").read_bytes())
    (held / "copy.txt").write_text("a ball 4")
    (held / "ball_0.png").unlink()
    Image.effect_noise((96, 96), 90).convert("RGB").save(held / "ball_0.png")
    trained = DatasetSpec(id="trained", instance_data_dir=str(pictures))
    judged = DatasetSpec(id="judged", instance_data_dir=str(held), dataset_type="eval")
    (fault,) = report_on(trained, judged).faults
    assert (fault.dataset_id, fault.kind, [path.name for path in fault.paths]) == ("judged", "judged_and_trained", ["copy.png"])
    assert fault.text.startswith("1 of 2 pictures also trained on")


@pytest.fixture
def wide(tmp_path) -> Path:
    """A picture twice as wide as high, white."""
    Image.new("RGB", (320, 160), "white").save(tmp_path / "wide.png")
    return tmp_path / "wide.png"


def cell(sheet: Image.Image) -> Image.Image:
    """The first thumbnail of a sheet with a legend, of a picture twice as wide as high."""
    top = MARGIN + 2 * 16 + TITLE
    return sheet.crop((MARGIN, top, MARGIN + CELL, top + CELL // 2))


def test_the_sheet_shows_the_whole_picture_and_dims_what_is_cropped_away(wide):
    shown = sample(str(wide), size=(320, 160))._replace(views=(Fit(128, 64, 0, 0),))
    picture = cell(draw_sheet(Index((shown,))))
    assert picture.getpixel((40, 40)) == (255, 255, 255)
    assert picture.getpixel((0, 0)) == picture.getpixel((79, 79)) == FRAME
    assert picture.getpixel((120, 40)) == (76, 76, 76)


def test_the_sheet_tints_what_a_mask_takes_out(wide, tmp_path):
    (tmp_path / "wide.txt").write_text("wide")
    (tmp_path / "masks").mkdir()
    mask = Image.new("L", (320, 160), 255)
    mask.paste(0, (0, 0, 160, 160))
    mask.save(tmp_path / "masks" / "wide.png")
    index = index_datasets((DatasetSpec(instance_data_dir=str(tmp_path), mask_data_dir=str(tmp_path / "masks")),), PICO)
    picture = cell(draw_sheet(index))
    red, green, _ = picture.getpixel((40, 40))
    assert red > green + 60 and picture.getpixel((120, 40)) == (255, 255, 255)


def test_the_sheet_shows_the_reference_in_the_corner(wide, tmp_path):
    Image.new("RGB", (64, 64), (0, 0, 255)).save(tmp_path / "reference.png")
    reference = Reference(tmp_path / "reference.png", Facts(64, 64, "r"), SQUARE, (Fit(64, 64, 0, 0),))
    shown = sample(str(wide), size=(320, 160), reference=reference)._replace(views=(Fit(128, 64, 0, 0),))
    assert cell(draw_sheet(Index((shown,)))).getpixel((CELL - 12, CELL // 2 - 12)) == (0, 0, 255)


def test_a_sheet_has_one_width_and_shows_the_first_of_many(pictures):
    few = index_datasets((DatasetSpec(instance_data_dir=str(pictures)),), PICO)
    many = Index(tuple(few.samples[0]._replace(passes=n + 1) for n in range(200)))
    assert draw_sheet(few).width == draw_sheet(many).width == WIDTH == 2 * MARGIN + COLUMNS * CELL + (COLUMNS - 1) * GAP
    assert draw_sheet(many).height == draw_sheet(Index(many.samples[:40])).height
    assert draw_sheet(Index(())).width == WIDTH


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_a_picture_of_any_mode_is_drawn(tmp_path, mode):
    grey = Image.new("L", (320, 160), 255)
    picture = Image.new("I;16", grey.size, 65535) if mode == "I;16" else grey.convert("RGB").convert(mode)
    picture.save(tmp_path / "wide.tif")
    shown = sample(str(tmp_path / "wide.tif"), size=(320, 160))
    assert cell(draw_sheet(Index((shown,)))).getpixel((40, 40)) == (255, 255, 255)


def test_a_turned_picture_is_drawn_upright(tmp_path):
    picture = Image.new("RGB", (160, 320), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 160, 160))  # its upper half, which is the right one once it is upright
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    drawn = cell(draw_sheet(Index((sample(str(tmp_path / "turned.png"), size=(320, 160)),))))
    assert (drawn.getpixel((40, 40)), drawn.getpixel((120, 40))) == ((0, 0, 255), (255, 0, 0))


def test_what_is_left_out_has_a_shelf_of_its_own(pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    index = index_datasets((DatasetSpec(instance_data_dir=str(pictures)),), PICO)
    rejected = (
        Rejected("pictures", tmp_path / "broken.png", "is no picture"),
        Rejected("pictures", tmp_path / "gone.png", "?"),
    )
    assert draw_sheet(replace(index, rejected=rejected)).height > draw_sheet(index).height + CELL


def test_the_command_reports_on_a_folder(pictures, tmp_path):
    (tmp_path / "pictures").mkdir()
    for path in pictures.iterdir():
        (tmp_path / "pictures" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "pictures" / "broken.txt").write_text("broken")
    sheet = tmp_path / "sheets" / "sheet.png"
    options = ("--flavour", "pico", "--resolution", "48,64", "--batch-size", "4", "--sheet", sheet, "--out", tmp_path)
    command = Command("dataset", tmp_path / "pictures", *options)
    assert command.code == 0, command.stderr
    assert command.report["total"]["pictures"] == 6 and command.report["batch_size"] == 4
    assert [Path(entry["path"]).name for entry in command.report["parts"][0]["rejected"]] == ["broken.png"]
    assert "left out: 1 file" in command.report["text"]
    with Image.open(sheet) as drawn:
        assert drawn.width == WIDTH


def test_the_command_reports_on_all_datasets_of_a_job(pictures, tmp_path):
    data = job_data(pictures, training={"train_batch_size": 3, "gradient_accumulation_steps": 2})
    data["datasets"] = [
        {"id": "a", "instance_data_dir": str(pictures)},
        {"id": "b", "instance_data_dir": str(pictures), "repeats": 1},
    ]
    (tmp_path / "job.json").write_text(json.dumps(data))
    command = Command("dataset", tmp_path / "job.json", "--out", tmp_path)
    assert command.code == 0, command.stderr
    assert [part["id"] for part in command.report["parts"]] == ["a", "b"]
    assert (command.report["base"], command.report["batch_size"]) == ("pico", 3)
    assert command.report["steps_per_epoch"] == 5  # 3 buckets of 2, then 3 of 4: 3 and 6 batches
    refused = Command("dataset", tmp_path / "job.json", "--resolution", "512", "--batch-size", "2")
    assert refused.code == 2 and "take out --resolution, --batch-size" in refused.report["error"]


def test_the_command_says_what_the_user_must_decide(tmp_path):
    missing = Command("dataset", tmp_path / "nothing")
    assert missing.code == 2 and "there is no folder and no file" in missing.report["error"]
    folder = make_pictures(tmp_path / "pictures", 2)
    assert Command("dataset", folder, "--sheet", tmp_path / "sheet.txt").code == 2
    assert Command("dataset", folder, "--batch-size", "0").code == 2
    (folder / "ball_1.txt").unlink()
    uncaptioned = Command("dataset", folder, "--out", tmp_path)
    assert uncaptioned.code == 2 and "ball_1.png has no caption" in uncaptioned.report["error"]
    assert Command("dataset", folder, "--caption-strategy", "filename", "--out", tmp_path).code == 0


def test_a_run_tells_what_it_leaves_out(tmp_path, cache):
    folder = make_pictures(tmp_path / "pictures", 2)
    for name in ("one", "two"):
        (folder / f"{name}.png").write_bytes(b"no picture")
        (folder / f"{name}.txt").write_text(name)
    data = job_data(folder, training={"max_train_steps": 1})
    run_dir = Path(run_in_process(parse_job(data), tmp_path / "runs", cache)["run_dir"])
    event = next(json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines() if '"dataset"' in line)
    assert (event["pictures"], event["rejected"], len(event["reasons"])) == (2, 2, 1)
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert [Path(entry["path"]).name for entry in manifest["rejected"]] == ["one.png", "two.png"]


def test_the_command_knows_what_a_run_finds_in_the_cache(tmp_path, cache):
    folder = make_pictures(tmp_path / "pictures", 2)
    data = job_data(folder, training={"max_train_steps": 1})
    (tmp_path / "job.json").write_text(json.dumps(data))
    (folder / "ball_0.txt").write_text("a caption of its own")

    def state() -> dict:
        return Command("dataset", tmp_path / "job.json", "--out", tmp_path, "--cache", tmp_path / "cache").report["cache"]

    assert state() == {"latents": 0, "of_latents": 2, "captions": 0, "of_captions": 2}
    run_in_process(parse_job(data), tmp_path / "runs", tmp_path / "cache")
    assert state() == {"latents": 2, "of_latents": 2, "captions": 2, "of_captions": 2}
    (folder / "ball_0.txt").write_text("another caption")
    assert state() == {"latents": 2, "of_latents": 2, "captions": 1, "of_captions": 2}


def test_buckets_that_are_dropped_are_told_as_left_out(tmp_path):
    folder = make_pictures(tmp_path / "pictures", 4)
    data = job_data(folder, training={"train_batch_size": 2})
    data["datasets"][0]["small_buckets"] = "drop"
    (tmp_path / "job.json").write_text(json.dumps(data))
    part = Command("dataset", tmp_path / "job.json", "--out", tmp_path).report["parts"][0]
    assert part["pictures"] == 2 and len(part["rejected"]) == 2
