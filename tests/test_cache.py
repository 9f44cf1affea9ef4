"""The cache can be trusted: only what changed is encoded again, damage is found, and runs side by side do no harm."""

import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.vae import EncoderTiny
from PIL import Image
from torch import nn

from support import CPU, encoded, job_data, make_pictures, opened, run_in_process, silent
from trainer_core.caching import fill_caches
from trainer_core.context import RunContext
from trainer_core.data.cache import MAX_OPEN, Shards, entry_name
from trainer_core.data.cache_limit import make_room
from trainer_core.data.encode import Caches, encode_captions, encode_pictures, pictures_of
from trainer_core.data.index import index_datasets
from trainer_core.data.sample import Sample
from trainer_core.errors import JobError, StopRequested
from trainer_core.events import EventLog, EventReader, Pace
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.flux.text import EncoderFormat
from trainer_core.half_written import claim, clear_abandoned, clear_unfinished, unfinished
from trainer_core.job_file import parse_job
from trainer_core.run_dir import run_dir_for
from trainer_core.setup import prepare
from trainer_core.specs.dataset import DatasetSpec

SHARDS = "shard-*.safetensors"


def index(folder: Path, **fields) -> list[Sample]:
    return list(index_datasets((DatasetSpec(instance_data_dir=str(folder), **fields),), FLAVOURS["pico"]).samples)


def latents(samples: list[Sample], cache: Path, **options) -> tuple[Caches, list[int]]:
    """The caches with these latents, checked and filled, and what the progress said was done."""
    seen, caches = [], opened(samples, cache)
    caches.check(samples, [], silent)
    encode_pictures(caches, pictures_of(samples), PICO_FILES.vae, CPU, lambda done, total: seen.append(done), **options)
    return caches, seen


def filled(job, tmp_path: Path, should_stop: Callable[[], bool] = lambda: False) -> tuple[Caches, list[dict]]:
    """The caches of a run, and its events up to there."""
    run_dir = run_dir_for(job, tmp_path / "runs")
    run_dir.root.mkdir(parents=True, exist_ok=True)
    run_dir.events_path.unlink(missing_ok=True)
    events = EventLog(run_dir.events_path)
    try:
        caches = fill_caches(prepare(job), RunContext(run_dir, tmp_path / "cache", events, should_stop))
    finally:
        events.close()
    return caches, list(EventReader(run_dir.events_path).new())


def shards_below(cache: Path) -> list[Path]:
    return sorted(cache.rglob(SHARDS))


# What is encoded, and what is not


def test_entries_are_named_by_all_that_made_them():
    assert entry_name("latents", "a", "b") == entry_name("latents", "a", "b")
    assert len({entry_name(*parts) for parts in (("latents", "a", "b"), ("latents", "ab", ""), ("masks", "a", "b"))}) == 3


def test_an_entry_comes_back_in_every_format_that_it_may_have(tmp_path):
    tensors = {
        "text": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
        "half": torch.arange(4).to(torch.float16),
        "mask": torch.tensor([True, False, True]),
        "part": torch.arange(12.0).reshape(3, 4).T,
    }
    with Shards(tmp_path).writer() as writer:
        writer.add("entry", tensors)
        writer.add("other", {"text": torch.zeros(2)})
    shards = Shards(tmp_path)
    shards.check(["entry", "other"])
    found = shards.read("entry")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert all(found[name].dtype == tensors[name].dtype for name in tensors)


def test_only_a_changed_picture_is_encoded_again(tmp_path):
    folder = make_pictures(tmp_path / "pictures", 4)
    samples = index(folder)
    first, seen = latents(samples, tmp_path / "cache")
    assert seen == [0, 1, 2, 3, 4]
    assert latents(samples, tmp_path / "cache")[1] == [4]
    Image.new("RGB", (96, 96), "green").save(folder / "ball_0.png")
    changed = index(folder)
    second, seen = latents(changed, tmp_path / "cache")
    assert seen == [3, 4]
    same = [torch.equal(first.latent(one), second.latent(other)) for one, other in zip(samples, changed, strict=True)]
    assert same == [False, True, True, True]
    assert second.latent(changed[1]).shape == (16, 6, 10)


def test_only_a_changed_caption_is_encoded_again(tmp_path):
    def texts(captions: list[str]) -> list[int]:
        seen, caches = [], opened([], tmp_path)
        told = PICO_FILES, FLAVOURS["pico"], EncoderFormat(torch.float32), CPU, lambda done, total: seen.append(done)
        encode_captions(caches, captions, *told)
        assert [caches.text(caption)["text"].shape for caption in captions] == [(32, 128)] * len(captions)
        return list(dict.fromkeys(seen))  # it is told again for each tensor of the encoders, so that who waits may leave

    assert texts(["a", "b", "c"]) == [0, 3]
    assert texts(["a", "b", "c"]) == [3]
    assert texts(["a", "another", "c"]) == [2, 3]


def test_every_view_of_a_picture_is_encoded_and_a_background_counts_only_where_something_is_clear(tmp_path):
    folder = make_pictures(tmp_path / "pictures", 1)
    samples = index(folder, horizontal_flip=True)
    caches, seen = latents(samples, tmp_path / "cache")
    assert seen == [0, 1, 2] and not torch.equal(caches.latent(samples[0], 0), caches.latent(samples[0], 1))
    assert latents(index(folder, horizontal_flip=True, background="red"), tmp_path / "cache")[1] == [2]
    Image.new("RGBA", (96, 96), (0, 0, 255, 0)).save(folder / "ball_0.png")
    found = [latents(index(folder, background=colour), tmp_path / "cache")[1] for colour in ("red", "white", "red")]
    assert found == [[0, 1], [0, 1], [1]]


def test_a_picture_that_changed_or_went_since_it_was_looked_at_is_named(tmp_path):
    folder = make_pictures(tmp_path / "pictures", 4)
    samples = index(folder)
    Image.new("RGB", (96, 96), "green").save(folder / "ball_2.png")
    with pytest.raises(JobError, match=r"ball_2\.png has changed since the datasets were looked at; start again"):
        latents(samples, tmp_path / "cache")
    (folder / "ball_2.png").unlink()
    with pytest.raises(JobError, match=r"ball_2\.png cannot be read any more \(No such file"):
        latents(samples, tmp_path / "cache")
    assert len(opened(samples, tmp_path / "cache").shards_of(samples, [])) == 1
    assert latents([*samples[:2], samples[3]], tmp_path / "cache")[1] == [2, 3]


def test_interrupted_caching_goes_on_where_it_was(tmp_path):
    samples, cache = index(make_pictures(tmp_path / "pictures", 5)), tmp_path / "cache"

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise StopRequested(0, tmp_path)

    caches = opened(samples, cache)
    with pytest.raises(StopRequested):
        encode_pictures(caches, pictures_of(samples), PICO_FILES.vae, CPU, stop)
    resumed, seen = latents(samples, cache)
    assert seen == [3, 4, 5]
    straight, _ = latents(samples, tmp_path / "straight")
    assert all(torch.equal(resumed.latent(sample), straight.latent(sample)) for sample in samples)


def test_a_wish_to_stop_is_obeyed_within_one_picture(tmp_path):
    pictures = make_pictures(tmp_path / "pictures", 5)
    job, wishes = parse_job(job_data(pictures)), iter([False, False, True])
    with pytest.raises(StopRequested):
        filled(job, tmp_path, lambda: next(wishes))
    assert latents(index(pictures), tmp_path / "cache")[1] == [2, 3, 4, 5]
    _, events = filled(job, tmp_path)
    assert [event["done"] for event in events if event.get("phase") == "check cache"][-1] == 5


# Damage


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


@pytest.mark.parametrize(
    ("damage", "encoded_again"),
    [
        (lambda path: flip(path, -1), 1),  # a byte of the last latent
        (lambda path: cut(path, path.stat().st_size - 10), 1),
        (lambda path: flip(path, 9), 4),  # a byte of the header
        (lambda path: cut(path, 20), 4),
        (lambda path: cut(path, 3), 4),
        (lambda path: path.write_bytes(b""), 4),
        (lambda path: flip(path, 6), 4),  # a header as long as no file is
    ],
)
def test_a_damaged_shard_is_found_named_and_rebuilt_as_it_was(tmp_path, caplog, damage, encoded_again):
    samples, cache = index(make_pictures(tmp_path / "pictures", 4)), tmp_path / "cache"
    first, _ = latents(samples, cache)
    (shard,) = shards_below(cache)
    before = [first.latent(sample) for sample in samples]
    damage(shard)
    with caplog.at_level(logging.WARNING):
        second, seen = latents(samples, cache)
    assert f"cache shard {shard} is damaged" in caplog.text and not shard.exists()
    assert seen[0] == 4 - encoded_again and seen[-1] == 4
    assert all(torch.equal(second.latent(sample), latent) for sample, latent in zip(samples, before, strict=True))
    caplog.clear()
    assert latents(samples, cache)[1] == [4] and not caplog.records


def test_no_flipped_byte_anywhere_is_taken_for_what_was_written(tmp_path):
    entries = {name: {"x": torch.arange(6.0) + number, "y": torch.ones(3)} for number, name in enumerate(("aa", "bb"))}
    with Shards(tmp_path).writer() as writer:
        for name, tensors in entries.items():
            writer.add(name, tensors)
    (shard,) = shards_below(tmp_path)
    whole = shard.read_bytes()
    for position in range(len(whole)):
        for bit in (0, 6):
            for path in shards_below(tmp_path):
                path.unlink()
            shard.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << bit)]) + whole[position + 1 :])
            shards = Shards(tmp_path)
            shards.check(entries)
            for entry, tensors in entries.items():
                if entry in shards:
                    found = shards.read(entry)
                    assert found.keys() == tensors.keys(), position
                    assert all(torch.equal(found[key], tensors[key]) for key in tensors), position


def test_what_a_dead_process_left_half_written_goes_and_what_is_being_written_stays(tmp_path):
    for name in ("latents", "pictures/00"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "left.tmp").write_bytes(b"half")
    with (tmp_path / "latents" / "written.tmp").open("wb") as file:
        claim(file)
        clear_abandoned(tmp_path)
        assert [path.name for path in tmp_path.rglob("*.tmp")] == ["written.tmp"]


def test_what_is_not_whole_yet_is_gone_with_its_writer_and_stays_while_there_is_one(tmp_path):
    place = tmp_path / "place"
    with unfinished(place) as one:
        one.mkdir()
        (one / "picture").write_bytes(b"half")
        with unfinished(place) as other:
            other.write_bytes(b"whole")
            os.replace(other, place / "done")
        clear_unfinished(place)
        assert (one / "picture").exists()
    assert [path.name for path in place.iterdir()] == ["done"]
    dead = place / ".unfinished-0123456789ab"
    (dead / "new").mkdir(parents=True)
    (dead / "claim").touch()
    clear_unfinished(place)
    assert [path.name for path in place.iterdir()] == ["done"]


# Several at once


def encode_all(pictures: Path, cache: Path) -> None:
    torch.set_num_threads(1)
    encoded(index(pictures), cache)


def test_two_runs_at_once_on_a_cold_cache_both_end_well(tmp_path):
    pictures, cache = make_pictures(tmp_path / "pictures", 6), tmp_path / "cache"
    processes = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    children = [processes.Process(target=encode_all, args=(pictures, cache)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    before = shards_below(cache)
    third = encoded(index(pictures), cache)
    assert shards_below(cache) == before and latents(index(pictures), cache)[1] == [6]
    alone = encoded(index(pictures), tmp_path / "alone")
    assert all(torch.equal(third.latent(sample), alone.latent(sample)) for sample in index(pictures))


@pytest.mark.skipif(os.name == "nt", reason="Windows does not remove an open file, so there is nothing to survive")
def test_a_run_goes_on_when_its_shards_are_removed_elsewhere(tmp_path):
    samples = index(make_pictures(tmp_path / "pictures", 2))
    before, _ = latents(samples, tmp_path / "cache")
    reading, _ = latents(samples, tmp_path / "cache")
    for shard in shards_below(tmp_path / "cache"):
        shard.unlink()
    assert all(torch.equal(reading.latent(sample), before.latent(sample)) for sample in samples)
    unread = opened(samples, tmp_path / "cache")
    assert latents(samples, tmp_path / "cache")[1] == [0, 1, 2] and not unread.shards_of(samples, [])


def test_more_shards_than_a_process_may_open_can_be_read(tmp_path):
    shards, count = Shards(tmp_path), MAX_OPEN + 10
    for number in range(count):
        with shards.writer() as writer:
            writer.add(str(number), {"x": torch.tensor([float(number)])})
    shards.check(map(str, range(count)))
    assert [shards.read(str(number))["x"][0].item() for number in range(count)] == list(range(count))
    shards_below(tmp_path)[0].unlink()
    with pytest.raises(JobError, match="was removed while this run needs it; start again, and it is rebuilt"):
        shards.read("0")


# The size limit


def test_what_was_used_longest_ago_goes_first_and_nothing_that_is_needed(tmp_path, caplog):
    for number, kind in enumerate(("latents", "captions", "latents")):
        with Shards(tmp_path / kind).writer() as writer:
            writer.add(str(number), {"x": torch.zeros(1000)})
        newest = max(shards_below(tmp_path), key=lambda path: path.name)
        os.utime(newest, (1000.0 + number,) * 2)
    old = tmp_path / "masks" / "ab" / f"{'ab' * 32}.safetensors"  # of format 2
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(4000))
    os.utime(old, (500.0,) * 2)
    users = tmp_path / "latents" / "mine.safetensors"
    users.write_bytes(b"not ours")
    first, second, third = sorted(shards_below(tmp_path), key=lambda path: path.stat().st_mtime)
    make_room(tmp_path, 20_000, set())
    assert old.exists()
    make_room(tmp_path, 13_000, set())
    assert not old.exists() and first.exists()
    make_room(tmp_path, 9_000, {first})
    assert shards_below(tmp_path) == sorted([first, third]) and not second.exists()
    assert not caplog.records
    make_room(tmp_path, 1, {first, third})
    assert shards_below(tmp_path) == sorted([first, third]) and users.exists()
    assert "above training.cache_size_limit" in caplog.text and "nothing needed is removed" in caplog.text


def test_cache_size_limit_removes_what_the_run_does_not_need(tmp_path):
    other, wanted = make_pictures(tmp_path / "other", 3), make_pictures(tmp_path / "wanted", 5)
    cache = tmp_path / "cache"
    Image.new("RGB", (96, 96), "green").save(other / "ball_0.png")
    filled(parse_job(job_data(other)), tmp_path)
    before = shards_below(cache)
    filled(parse_job(job_data(wanted)), tmp_path)
    assert set(before) < set(shards_below(cache))
    job = parse_job(job_data(wanted, training={"cache_size_limit": 1e-9}))
    caches, _ = filled(job, tmp_path)
    setup = prepare(job)
    kept = shards_below(cache)
    assert kept == sorted(
        caches.shards_of(setup.samples, ["", *(shot.prompt for shot in setup.shots), *(s.caption for s in setup.samples)])
    )
    assert all(caches.latent(sample).isfinite().all() for sample in setup.samples)
    assert run_in_process(job, tmp_path, cache)["steps"] == 6 and shards_below(cache) == kept


def test_a_run_marks_what_it_uses(tmp_path):
    samples = index(make_pictures(tmp_path / "pictures", 2))
    latents(samples, tmp_path / "cache")
    (shard,) = shards_below(tmp_path / "cache")
    os.utime(shard, (1000.0, 1000.0))
    opened(samples, tmp_path / "cache")
    assert shard.stat().st_mtime == 1000.0
    latents(samples, tmp_path / "cache")
    assert shard.stat().st_mtime > time.time() - 60


# How pictures go through the VAE


def encoder_calls(work: Callable[[], object]) -> list[int]:
    """The batch sizes with which the tiny VAE's encoder is called meanwhile."""
    sizes = []

    def count(module: nn.Module, given: tuple[torch.Tensor, ...], result: object) -> None:
        if isinstance(module, EncoderTiny):
            sizes.append(len(given[0]))

    hook = nn.modules.module.register_module_forward_hook(count)
    try:
        work()
    finally:
        hook.remove()
    return sizes


def test_vae_batch_size_takes_pictures_of_one_bucket_together(tmp_path):
    samples = index(make_pictures(tmp_path / "pictures", 7))  # 3, 2 and 2 of a bucket
    one, together = tmp_path / "one", tmp_path / "together"
    assert encoder_calls(lambda: latents(samples, one)) == [1] * 7
    assert encoder_calls(lambda: latents(samples, together, batch_size=2)) == [2, 1, 2, 2]
    first, second = opened(samples, one), opened(samples, together)
    for sample in samples:
        assert torch.allclose(first.latent(sample), second.latent(sample), rtol=1e-4, atol=1e-4)


def test_vae_enable_slicing_takes_them_one_by_one_all_the_same(tmp_path):
    pictures = make_pictures(tmp_path / "pictures", 6)
    sizes = {}
    for sliced in (False, True):
        job = parse_job(job_data(pictures, base={"vae_batch_size": 2, "vae_enable_slicing": sliced, "mixed_precision": "no"}))
        sizes[sliced] = encoder_calls(lambda job=job, sliced=sliced: filled(job, tmp_path / str(sliced)))
    assert sizes == {False: [2, 2, 2], True: [1] * 6}
    alone, _ = latents(index(pictures), tmp_path / "alone")
    sliced = opened(index(pictures), tmp_path / "True" / "cache")
    assert all(torch.equal(alone.latent(sample), sliced.latent(sample)) for sample in index(pictures))


# What is said meanwhile


def test_the_pace_counts_neither_what_was_there_nor_loading():
    pace = Pace()
    assert pace.of("encode pictures", 10, 0.0) is None
    assert pace.of("encode pictures", 10, 30.0) is None  # loaded
    assert pace.of("encode pictures", 14, 32.0) == 2.0
    assert pace.of("encode captions", 3, 40.0) is None
    assert pace.of("encode captions", 4, 41.0) == 1.0
    assert pace.of("encode captions", 0, 42.0) is None


def test_the_events_say_how_fast_it_goes_and_how_long_it_takes(tmp_path):
    _, events = filled(parse_job(job_data(make_pictures(tmp_path / "pictures", 3))), tmp_path)
    phases = [event for event in events if event["event"] == "phase" and event["phase"] == "encode pictures"]
    assert [phases[0][name] for name in ("done", "per_second", "seconds_left")] == [0, None, None]
    assert phases[-1]["done"] == 3 and phases[-1]["per_second"] > 0 and phases[-1]["seconds_left"] == 0


def test_all_pictures_of_a_run_have_distinct_names(tmp_path):
    samples = index(make_pictures(tmp_path / "pictures", 6), resolution=[64, 96], horizontal_flip=True)
    caches = opened(samples, tmp_path)
    assert len({caches.latent_name(picture) for picture in pictures_of(samples)}) == 24
