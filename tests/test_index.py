"""The index: what is found below a folder, what is learned of it and kept, and what is drawn, left out or said to be twice."""

import json
import logging
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.data import MEASURES, in_child, make_files
from support import ROOT, job_data, make_pictures
from trainer_core.data.duplicates import _pairs, exact, near
from trainer_core.data.facts import look_at
from trainer_core.data.file_memory import TABLE
from trainer_core.data.find import find_files
from trainer_core.data.index import count_buckets, index_datasets
from trainer_core.errors import JobError
from trainer_core.events import EventLog
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.job_file import parse_job
from trainer_core.run_dir import dataset_digest, files_below, run_dir_for
from trainer_core.setup import prepare
from trainer_core.specs.dataset import DatasetSpec
from trainer_core.writing import read_json, write_json

PICO = FLAVOURS["pico"]


def index_of(folder, cache=None, progress=lambda done, total: None, **fields):
    return index_datasets((DatasetSpec(instance_data_dir=str(folder), **fields),), PICO, cache, progress)


def index(folder, **fields):
    return list(index_of(folder, **fields).samples)


def names(samples) -> list[str]:
    return [sample.path.name for sample in samples]


def noise(path: Path, seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """A smooth picture that no other seed has, kept at the path."""
    grey = [(seed * 7919 + cell * cell * 31 + cell * seed * 17) % 251 for cell in range(192)]
    picture = Image.frombytes("RGB", (8, 8), bytes(grey)).resize(size, Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return picture


def test_the_index_knows_captions_sizes_and_buckets(pictures):
    samples = index(pictures)
    assert names(samples) == [f"ball_{number}.png" for number in range(6)]
    assert samples[1].caption == "a ball 1" and samples[1].facts[:2] == (120, 80)
    assert count_buckets(samples) == {"64x64": 2, "80x48": 2, "48x80": 2}


def test_everything_that_is_wrong_with_the_files_is_said_at_once(tmp_path):
    make_pictures(tmp_path, 4)
    (tmp_path / "ball_0.txt").unlink()
    (tmp_path / "ball_3.txt").unlink()
    (tmp_path / "ball_1.png").write_bytes(b"not a picture")
    (tmp_path / "ball_2.txt").write_bytes(b"a \x81 ball")
    missing = DatasetSpec(id="missing", instance_data_dir=str(tmp_path / "none"))
    with pytest.raises(JobError) as caught:
        index_datasets((missing, DatasetSpec(instance_data_dir=str(tmp_path))), PICO)
    message = str(caught.value)
    assert "there is no folder " + str(tmp_path / "none") in message
    assert "ball_0.png has no caption: write ball_0.txt beside it" in message
    assert "ball_3.png has no caption" in message and "ball_1" not in message
    assert "ball_2.txt is neither UTF-8 nor Windows-1252" in message


def test_an_empty_or_missing_folder_is_named_in_full(tmp_path):
    with pytest.raises(JobError, match="no pictures in " + str(tmp_path)):
        index(tmp_path)
    with pytest.raises(JobError, match="there is no folder " + str(tmp_path / "none")):
        index(tmp_path / "none")


def test_a_file_that_cannot_be_trained_on_is_left_out_unless_nothing_remains(tmp_path):
    make_pictures(tmp_path, 2)
    (tmp_path / "ball_0.png").write_bytes(b"")
    told = index_of(tmp_path)
    assert names(told.samples) == ["ball_1.png"]
    assert [(entry.dataset_id, entry.path.name) for entry in told.rejected] == [("pictures", "ball_0.png")]
    assert told.rejected[0].reason.startswith("is empty (0 bytes)")
    (tmp_path / "ball_1.png").write_bytes(b"")
    with pytest.raises(JobError, match=r"none of its 2 pictures can be trained on: is empty \(0 bytes\)"):
        index(tmp_path)


def test_a_disabled_dataset_is_not_even_looked_for(tmp_path, pictures):
    gone = {"id": "gone", "instance_data_dir": str(tmp_path / "none"), "disabled": True}
    job = parse_job(job_data(pictures, datasets=[gone, {"instance_data_dir": str(pictures)}]))
    assert {sample.dataset_id for sample in index_datasets(job.datasets, PICO).samples} == {"pictures"}
    with pytest.raises(JobError, match="every dataset to train on is disabled; switch one on"):
        prepare(parse_job(job_data(pictures, datasets=[gone])))


def test_max_num_samples_draws_by_the_dataset_and_stays_when_pictures_are_added(tmp_path):
    for number in range(40):
        noise(tmp_path / f"p{number}.png", number, (16, 16))
    fields = {"caption_strategy": "filename", "max_num_samples": 10}
    drawn = names(index(tmp_path, **fields))
    assert len(drawn) == 10 and drawn == sorted(drawn) == names(index(tmp_path, **fields))
    assert names(index(tmp_path, id="other", **fields)) != drawn
    assert names(index(tmp_path, caption_strategy="filename", max_num_samples=100)) == names(
        index(tmp_path, caption_strategy="filename")
    )
    noise(tmp_path / "new.png", 99, (16, 16))
    assert len(set(names(index(tmp_path, **fields))) - set(drawn)) <= 1


def test_datasets_and_resolutions_share_what_is_known_of_a_file(pictures):
    both = [DatasetSpec(id=name, instance_data_dir=str(pictures), resolution=(64, 32)) for name in "ab"]
    samples = index_datasets(tuple(both), PICO).samples
    assert len(samples) == 24
    assert len({id(sample.facts) for sample in samples}) == 6
    assert len({id(sample.bucket) for sample in samples}) == len({sample.bucket for sample in samples})
    assert len({id(sample.views) for sample in samples}) == len({sample.views for sample in samples})


def test_what_was_learned_is_kept_until_a_file_changes(tmp_path, monkeypatch):
    folder, cache = make_pictures(tmp_path / "pictures", 5), tmp_path / "cache"
    (folder / "bad.png").write_bytes(b"no picture")
    seen = []
    first = index_of(folder, cache, lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 6) and seen[-1] == (6, 6)
    Image.new("RGB", (50, 70)).save(folder / "ball_0.png")
    seen.clear()
    second = index_of(folder, cache, lambda done, total: seen.append((done, total)))
    assert seen[0] == (5, 6) and second.samples[0].facts[:2] == (50, 70)
    assert second.samples[1:] == first.samples[1:] and second.rejected == first.rejected
    monkeypatch.chdir(tmp_path)
    seen.clear()
    index_of("pictures", cache, lambda done, total: seen.append((done, total)))
    assert seen == [(6, 6)], "another way to name the folder is the same files"


def test_a_change_that_hides_behind_the_same_size_and_time_is_seen(tmp_path):
    folder, cache = tmp_path / "pictures", tmp_path / "cache"
    folder.mkdir()
    path = folder / "flat.bmp"
    for colour in ("red", "blue"):
        Image.new("RGB", (20, 20), colour).save(path)
        os.utime(path, ns=(10**18, 10**18))
        digest = index_of(folder, cache, caption_strategy="filename").samples[0].facts.digest
        assert digest == look_at(path).digest


@pytest.mark.parametrize("damage", ["text", "cut", "folder"])
def test_a_damaged_memory_is_made_anew_and_one_that_cannot_be_written_is_done_without(tmp_path, caplog, damage):
    folder, cache = make_pictures(tmp_path / "pictures", 3), tmp_path / "cache"
    whole = index_of(folder, cache)
    path = cache / "files.sqlite"
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(b"no database at all, but a text" * 99 if damage == "text" else path.read_bytes()[:4096])
    with caplog.at_level(logging.WARNING):
        assert index_of(folder, cache) == whole
    assert "files.sqlite" in caplog.text
    seen = []
    assert index_of(folder, cache, lambda done, total: seen.append((done, total))) == whole
    assert seen[0] == ((0, 3) if damage == "folder" else (3, 3))


def test_an_interrupted_first_look_goes_on_where_it_was(tmp_path):
    folder, cache = make_pictures(tmp_path / "pictures", 100), tmp_path / "cache"

    def interrupt(done: int, total: int) -> None:
        if done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_of(folder, cache, interrupt)
    seen = []
    assert len(index_of(folder, cache, lambda done, total: seen.append(done)).samples) == 100
    assert seen[0] == 32


def test_several_processes_share_one_memory(tmp_path):
    folder, cache = make_pictures(tmp_path / "pictures", 60), tmp_path / "cache"
    code = (
        "import sys; from pathlib import Path; from trainer_core.data.file_memory import learn\n"
        "from trainer_core.data.find import find_files\n"
        "files = find_files(Path(sys.argv[1]), {'.png'}).files\n"
        "for _ in range(5): assert len(learn(files, Path(sys.argv[2]), lambda done, total: None)) == 60\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(cache)]
    children = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [child.communicate(timeout=120)[1] for child in children] == ["", "", ""]
    with sqlite3.connect(cache / "files.sqlite") as database:
        assert database.execute(f"SELECT count(*) FROM {TABLE}").fetchone() == (60,)


def test_looks_tell_pictures_apart_but_not_their_copies(tmp_path):
    picture = noise(tmp_path / "a.png", 1, (160, 120))
    picture.resize((80, 60)).save(tmp_path / "small.jpg", quality=70)
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    noise(tmp_path / "other.png", 2)
    first = look_at(tmp_path / "a.png")
    turned_facts = look_at(tmp_path / "turned.jpg")
    assert first[:2] == turned_facts[:2] == (160, 120) and turned_facts.orientation == 6
    for name, alike in (("small.jpg", True), ("turned.jpg", True), ("other.png", False)):
        assert ((first.look ^ look_at(tmp_path / name).look).bit_count() <= 6) is alike, name


def test_alpha_counts_where_something_shows_through(tmp_path):
    Image.new("RGBA", (20, 20), (9, 9, 9, 255)).save(tmp_path / "opaque.png")
    Image.new("RGBA", (20, 20), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    Image.new("P", (20, 20)).save(tmp_path / "palette.png", transparency=0)
    assert [look_at(tmp_path / f"{name}.png").has_alpha for name in ("opaque", "clear", "palette")] == [False, True, True]


def test_duplicates_and_pictures_that_look_alike_are_found_once_each(tmp_path):
    for number in range(8):
        picture = noise(tmp_path / f"p{number}.png", number, (128, 96))
    shutil.copy(tmp_path / "p2.png", tmp_path / "z_copy.png")
    picture.save(tmp_path / "z_saved.jpg", quality=60)
    samples = index(tmp_path, caption_strategy="filename", resolution=(64, 32))
    assert [[path.name for path in group] for group in exact(samples)] == [["p2.png", "z_copy.png"]]
    assert [[path.name for path in group] for group in near(samples)] == [["p7.png", "z_saved.jpg"]]


def test_near_finds_every_pair_that_comparing_all_of_them_finds():
    draw = random.Random(3)
    looks = [draw.getrandbits(64) for _ in range(60)]
    for look in list(looks):
        for bits in range(1, 9):
            looks.append(look ^ sum(1 << bit for bit in draw.sample(range(64), bits)))
    looks = list(dict.fromkeys(looks))
    for most in (0, 1, 4, 5, 6, 7):
        slowly = {
            (min(one, other), max(one, other))
            for number, one in enumerate(looks)
            for other in looks[:number]
            if (one ^ other).bit_count() <= most
        }
        assert set(_pairs(looks, most)) == slowly


def test_links_are_followed_but_never_in_circles_or_out_above(tmp_path):
    folder = tmp_path / "set"
    noise(folder / "b" / "one.png", 1)
    noise(tmp_path / "elsewhere" / "two.png", 2)
    noise(tmp_path / "three.png", 3)
    (folder / "a").symlink_to(folder / "b", target_is_directory=True)
    (folder / "b" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "up").symlink_to(tmp_path, target_is_directory=True)
    (folder / "out").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "file.png").symlink_to(tmp_path / "three.png")
    (folder / "gone.png").symlink_to(tmp_path / "none.png")
    (folder / ".hidden").mkdir()
    noise(folder / ".hidden" / "four.png", 4)
    walk = find_files(folder, {".png"})
    assert [file.name for file in walk.files] == ["b/one.png", "file.png", "out/two.png"]
    assert files_below(folder, {".png"}) == [file.path for file in walk.files]
    twice = "leads to a folder that is read already, or that holds this one"
    assert [(entry.path.relative_to(folder).as_posix(), entry.reason) for entry in walk.left_out] == [
        ("a", twice),
        ("b/loop", twice),
        ("gone.png", "is a link to a file that is not there"),
        ("up", twice),
    ]
    assert files_below(tmp_path / "none", {".png"}) == []


def test_masks_and_references_below_the_pictures_are_no_pictures(tmp_path):
    make_pictures(tmp_path, 2)
    make_pictures(tmp_path / "masks", 2)
    make_pictures(tmp_path / "references", 2)
    fields = {"mask_data_dir": str(tmp_path / "masks"), "reference_data_dir": str(tmp_path / "references")}
    assert [sample.path.parent for sample in index(tmp_path, **fields)] == [tmp_path, tmp_path]


@pytest.mark.parametrize(
    "field", ["instance_data_dir", "mask_data_dir", "reference_data_dir", "wildcards_dir", "caption_table"]
)
def test_a_run_is_another_one_when_a_file_that_a_dataset_reads_changes(tmp_path, field):
    data = {
        name: str(make_pictures(tmp_path / name, 2)) for name in ("instance_data_dir", "mask_data_dir", "reference_data_dir")
    }
    (tmp_path / "wildcards_dir").mkdir()
    (tmp_path / "wildcards_dir" / "animal.txt").write_text("cat")
    (tmp_path / "caption_table").write_text("{}")
    data |= {"caption_strategy": "jsonl", "caption_table": str(tmp_path / "caption_table")}
    data |= {"wildcards_dir": str(tmp_path / "wildcards_dir")}
    job = parse_job(job_data(tmp_path, datasets=[data]))
    idle = parse_job(job_data(tmp_path, datasets=[data, data | {"id": "idle", "disabled": True}]))
    first, first_idle = run_dir_for(job, tmp_path), run_dir_for(idle, tmp_path)
    assert run_dir_for(job, tmp_path) == first != first_idle
    path = tmp_path / field
    file = path if path.is_file() else next(path.glob("*.txt"))
    file.write_text("another text")
    assert run_dir_for(job, tmp_path) != first


def test_the_dataset_digest_sees_a_changed_caption(tmp_path):
    make_pictures(tmp_path, 2)
    first = dataset_digest(tmp_path)
    assert dataset_digest(tmp_path) == dataset_digest(str(tmp_path), "", "") == first
    (tmp_path / "ball_1.txt").write_text("another caption")
    assert dataset_digest(tmp_path) != first


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names that are no text")
def test_a_name_that_is_no_text_goes_through_everything(tmp_path):
    folder, cache = tmp_path / "pictures", tmp_path / "cache"
    noise(folder / "good.png", 1)
    os.rename(folder / "good.png", os.fsencode(folder) + b"/b\xffd_name.png")
    for _ in range(2):
        (sample,) = index(folder, caption_strategy="filename", cache=cache)
        assert sample.caption == "b\ufffdd name"
    assert dataset_digest(folder) == dataset_digest(folder)
    write_json(tmp_path / "report.json", {"name": str(sample.path)})
    assert read_json(tmp_path / "report.json") == {"name": str(sample.path)}
    events = EventLog(tmp_path / "events.jsonl")
    events.emit("warning", message=str(sample.path))
    events.close()
    assert json.loads((tmp_path / "events.jsonl").read_text())["message"] == str(sample.path)


def test_the_benchmark_measures_each_of_its_numbers(tmp_path):
    folder, cache = make_files(tmp_path / "pictures", 40), tmp_path / "cache"
    assert in_child("index", folder, cache)["samples"] == 40
    held, plan, digest = (MEASURES[name](folder, cache) for name in ("bytes", "plan", "digest"))
    assert 0 < held["bytes"] < 3000 and 0 < held["slope"] < 3000
    assert plan["batches"] >= 10 and plan["seconds"] > 0 and digest["seconds"] > 0
