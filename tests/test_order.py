"""The order of a run: what each batch holds, how datasets mix and take turns, and what becomes of small buckets."""

import logging
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from support import batches_per_epoch, job_data, make_pictures, run_in_process
from trainer_core.course import order_of
from trainer_core.data.buckets import Bucket, Fit, fit_centre
from trainer_core.data.order import Mix, Order, Turns
from trainer_core.data.sample import Facts, Index, Reference, Sample
from trainer_core.data.small_buckets import merge, settle_small_buckets
from trainer_core.errors import JobError, StopRequested
from trainer_core.job_file import parse_job
from trainer_core.setup import Setup, prepare
from trainer_core.specs.dataset import DatasetSpec

SQUARE, WIDE, WIDER, TALL = Bucket(64, 64), Bucket(80, 48), Bucket(112, 32), Bucket(48, 80)


def make_samples(*groups: tuple[str, Bucket, int, int]) -> list[Sample]:
    """So many samples of (dataset, bucket, number, passes), each with a path of its own."""
    return [
        Sample(name, f"{name}/{bucket}/{number}", ("",), Facts(100, 100, ""), bucket, (Fit(100, 100, 0, 0),), passes)
        for name, bucket, count, passes in groups
        for number in range(count)
    ]


def datasets_of(samples: list[Sample], batches: list[tuple[int, ...]]) -> list[str]:
    """The dataset of each batch, which must be of one dataset and one bucket."""
    kinds = [{(samples[index].dataset_id, samples[index].bucket) for index in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds)
    return [next(iter(kind))[0] for kind in kinds]


@pytest.mark.parametrize("case", range(40))
def test_an_epoch_shows_every_sample_as_often_as_its_passes_say_in_batches_of_one_dataset_and_bucket(case):
    drawn = random.Random(case)
    buckets = [Bucket(64 * width, 64) for width in range(1, 1 + drawn.randint(1, 6))]
    samples = make_samples(
        *(
            (f"set {name}", bucket, drawn.randint(1, 9), passes)
            for name in range(drawn.randint(1, 5))
            for passes in [drawn.randint(1, 4)]
            for bucket in buckets
        )
    )
    drawn.shuffle(samples)
    batch_size, names = drawn.randint(1, 7), {sample.dataset_id for sample in samples}
    mix = Mix({name: Turns(drawn.uniform(0.1, 9)) for name in names}, by_size=drawn.random() < 0.5)
    order = Order(samples, batch_size=batch_size, seed=case, mix=mix)
    for epoch in range(3):
        batches = order.indices_of_epoch(epoch)
        datasets_of(samples, batches)
        seen = Counter(index for batch in batches for index in batch)
        assert seen == {index: sample.passes for index, sample in enumerate(samples)}
        assert len(batches) == order.batches_per_epoch() == batches_per_epoch(samples, batch_size)
        smaller = [samples[batch[0]] for batch in batches if len(batch) < batch_size]
        assert len({(sample.dataset_id, sample.bucket) for sample in smaller}) == len(smaller), "one a bucket, its last"
        first = epoch * len(batches)
        assert [order.indices(number) for number in range(first, first + len(batches))] == batches
    assert len(order.stretches) == 1


def test_the_order_is_a_function_of_the_seed_and_the_number():
    samples = make_samples(("a", SQUARE, 9, 1), ("a", WIDE, 5, 1), ("b", WIDE, 6, 2))
    straight = [Order(samples, batch_size=2, seed=1).indices(number) for number in range(40)]
    order = Order(samples, batch_size=2, seed=1)
    assert [order.indices(number) for number in reversed(range(40))] == straight[::-1]
    assert [Order(samples, batch_size=2, seed=2).indices(number) for number in range(40)] != straight
    epochs = [order.indices_of_epoch(epoch) for epoch in range(2)]
    assert epochs[0] != epochs[1] and sorted(map(len, epochs[0])) == sorted(map(len, epochs[1]))


def test_a_bucket_is_shown_whole_before_any_of_it_comes_again():
    samples = make_samples(("a", SQUARE, 5, 4), ("a", WIDE, 3, 4), ("b", WIDE, 3, 2))
    shown = [index for batch in Order(samples, batch_size=2, seed=3).indices_of_epoch(1) for index in batch]
    for first, count in ((0, 5), (5, 3), (8, 3)):
        own = [index for index in shown if first <= index < first + count]
        passes = [own[start : start + count] for start in range(0, len(own), count)]
        assert all(sorted(part) == list(range(first, first + count)) for part in passes)
        assert count < 5 or len({tuple(part) for part in passes}) > 1, "each time in another order"


@pytest.mark.parametrize(("by_size", "share"), [(True, 2 / 3), (False, 1 / 2)], ids=["auto-weighting", "uniform"])
def test_datasets_mix_as_if_drawn_batch_by_batch_by_weight(by_size, share):
    """Dataset a has two batches and b has one; where b stands follows from a's share of the weight as long as both are left."""
    samples = make_samples(("a", SQUARE, 2, 1), ("b", SQUARE, 1, 1))
    order = Order(samples, batch_size=1, seed=0, mix=Mix(by_size=by_size))
    rounds = 1500
    places = Counter(datasets_of(samples, order.indices_of_epoch(epoch)).index("b") for epoch in range(rounds))
    for place, probability in enumerate((1 - share, share * (1 - share), share**2)):
        assert places[place] / rounds == pytest.approx(probability, abs=0.03)


def test_a_more_probable_dataset_comes_earlier():
    samples = make_samples(("a", SQUARE, 30, 1), ("b", SQUARE, 30, 1))
    order = Order(samples, batch_size=1, seed=0, mix=Mix({"b": Turns(probability=100.0)}))
    places = [place for place, name in enumerate(datasets_of(samples, order.indices_of_epoch(0))) if name == "b"]
    assert len(places) == 30 and places[-1] < 35
    assert (
        sum(datasets_of(samples, Order(samples, batch_size=1, seed=0).indices_of_epoch(0)[:30]).count(n) > 5 for n in "ab") == 2
    )


def test_a_dataset_is_drawn_from_only_within_its_steps_and_each_stretch_has_whole_epochs():
    samples = make_samples(("a", SQUARE, 3, 1), ("b", SQUARE, 4, 1), ("c", WIDE, 2, 3))
    turns = {"a": Turns(end_step=10), "b": Turns(start_step=4), "c": Turns(start_step=6, end_step=9)}
    order = Order(samples, batch_size=1, seed=0, mix=Mix(turns, accumulation=3))
    assert [(stretch.start_step, stretch.dataset_ids) for stretch in order.stretches] == [
        (0, ("a",)),
        (4, ("a", "b")),
        (6, ("a", "b", "c")),
        (9, ("a", "b")),
        (10, ("b",)),
    ]
    batches = [order.indices(number) for number in range(60)]
    names = datasets_of(samples, batches)
    for step in range(20):
        active = {name for name, turn in turns.items() if turn.start_step <= step < (turn.end_step or 20)}
        assert set(names[3 * step : 3 * step + 3]) <= active
    assert {index for (index,) in batches[:3]} == {index for (index,) in batches[3:6]} == {0, 1, 2}
    assert {index for (index,) in batches[30:34]} == {3, 4, 5, 6}, "the last stretch starts an epoch of its own"
    assert [order.batches_per_epoch(stretch) for stretch in range(5)] == [3, 7, 13, 7, 4]
    assert order.epochs(60) == pytest.approx(12 / 3 + 6 / 7 + 9 / 13 + 3 / 7 + 30 / 4)
    assert order.epochs(12) == 4


def test_planning_an_epoch_of_a_hundred_thousand_samples_takes_no_time():
    few = make_samples(*((f"set {name}", Bucket(64 * width, 64), 1, 1) for name in range(4) for width in range(1, 26)))
    samples = few * 1000
    began = time.process_time()
    assert len(Order(samples, batch_size=1, seed=0).indices_of_epoch(0)) == 100_000
    assert time.process_time() - began < 2


# through a job


def two_datasets(folder: Path, **second: object) -> list[dict]:
    """The same six pictures twice, as datasets one and two; fields go to the second."""
    pictures = str(make_pictures(folder / "pictures"))
    return [{"id": "one", "instance_data_dir": pictures}, {"id": "two", "instance_data_dir": pictures, **second}]


def setup_of(datasets: list[dict], **parts: dict) -> Setup:
    return prepare(parse_job(job_data(Path(), datasets=datasets, **parts)))


def shown_datasets(setup: Setup, num_batches: int = 24) -> list[str]:
    order = order_of(setup.job, setup.samples)
    return datasets_of(list(setup.samples), [order.indices(number) for number in range(num_batches)])


@pytest.mark.parametrize("field", ["probability", "start_step", "end_step"])
def test_a_setting_of_a_datasets_turns_changes_what_is_shown(tmp_path, field):
    plain, other = (setup_of(two_datasets(tmp_path, **fields)) for fields in ({}, {field: 3}))
    assert shown_datasets(plain) != shown_datasets(other)
    if field == "start_step":
        assert "two" in shown_datasets(plain, 3) and "two" not in shown_datasets(other, 3)
    if field == "end_step":
        assert "two" not in shown_datasets(other)[3:]


def test_data_backend_sampling_says_whether_size_counts(tmp_path):
    datasets = two_datasets(tmp_path, repeats=99)
    weighted, uniform = (
        shown_datasets(setup_of(datasets, training={"data_backend_sampling": sampling}), 303)
        for sampling in ("auto-weighting", "uniform")
    )
    assert Counter(weighted) == Counter(uniform) == {"one": 3, "two": 300}
    last = [max(place for place, name in enumerate(names) if name == "one") for names in (weighted, uniform)]
    assert last[1] < 20 < last[0]


def test_each_resolution_of_a_list_is_an_epoch_more_of_the_pictures(tmp_path):
    folder = make_pictures(tmp_path)  # 6 pictures in 3 buckets of 2
    dataset = {"instance_data_dir": str(folder), "resolution": [48, 64], "repeats": 2}
    setup = setup_of([dataset], training={"max_train_steps": 0, "num_train_epochs": 5})
    assert setup.num_steps == 5 * 2 * 3 * 3
    seen = Counter(
        setup.samples[index].path.name for batch in order_of(setup.job, setup.samples).indices_of_epoch(0) for index in batch
    )
    assert seen == {f"ball_{number}.png": 6 for number in range(6)}


def test_steps_that_no_dataset_is_drawn_from_are_named(tmp_path):
    datasets = two_datasets(tmp_path, start_step=5)
    datasets[0]["end_step"] = 3
    with pytest.raises(JobError, match="no dataset is drawn from in steps 3 to 4"):
        setup_of(datasets)
    assert setup_of(datasets, training={"max_train_steps": 3}).num_steps == 3
    order = order_of(
        parse_job(job_data(tmp_path, datasets=datasets)), setup_of(datasets, training={"max_train_steps": 3}).samples
    )
    assert order.indices(4), "looking beyond the end of such a run is no error"


def test_windows_and_epochs_do_not_go_together(tmp_path):
    with pytest.raises(JobError, match="set it to 0 and give max_train_steps"):
        setup_of(two_datasets(tmp_path, start_step=2), training={"max_train_steps": 0, "num_train_epochs": 2})
    left_out = two_datasets(tmp_path, start_step=2, disabled=True)
    assert setup_of(left_out, training={"max_train_steps": 0, "num_train_epochs": 2}).num_steps == 6


def test_steps_of_regularisation_alone_are_told_and_a_run_of_nothing_else_is_refused(tmp_path, caplog):
    datasets = two_datasets(tmp_path, is_regularisation_data=True)
    datasets[0]["start_step"] = 4
    setup_of(datasets)
    assert "steps 0 to 3 draw from regularisation datasets alone" in caplog.text
    with pytest.raises(JobError, match="the adapter would learn nothing"):
        setup_of(datasets, training={"max_train_steps": 4})


def test_turns_without_effect_are_told(tmp_path, caplog):
    def told(datasets: list[dict], **training: object) -> list[str]:
        caplog.clear()
        setup_of(datasets, training=training)
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    assert told(two_datasets(tmp_path)) == told(two_datasets(tmp_path, start_step=5, probability=2)) == []
    assert told(two_datasets(tmp_path, start_step=6)) == [
        "dataset 'two' is never drawn from: start_step is 6, and the run has 6 steps"
    ]
    assert told(two_datasets(tmp_path, end_step=7)) == ["datasets.1.end_step 7 has no effect: the run has 6 steps"]
    alone = {**two_datasets(tmp_path)[1], "probability": 2}
    assert told([alone], data_backend_sampling="uniform") == [
        "datasets.0.probability has no effect: no other dataset is drawn from beside 'two'",
        "training.data_backend_sampling has no effect: never are two datasets drawn from at once",
    ]


def test_with_windows_and_weights_resuming_is_exact(tmp_path, cache):
    datasets = two_datasets(tmp_path, start_step=2, probability=3, is_regularisation_data=True)
    datasets[0]["end_step"] = 3
    datasets.append({**datasets[0], "id": "three", "end_step": 0, "repeats": 1, "horizontal_flip": True})
    training = {"gradient_accumulation_steps": 2, "checkpoint_step_interval": 0, "max_train_steps": 4}
    job = parse_job(job_data(tmp_path, datasets=datasets, training=training))
    straight = run_in_process(job, tmp_path / "straight", cache)
    with pytest.raises(StopRequested):
        run_in_process(job, tmp_path / "resumed", cache, stop_before=3)
    resumed = run_in_process(job, tmp_path / "resumed", cache)
    assert resumed["losses"] == straight["losses"]
    assert Path(resumed["lora"]).read_bytes() == Path(straight["lora"]).read_bytes()


# small buckets


def spec(**fields: object) -> DatasetSpec:
    return DatasetSpec(id="a", instance_data_dir="nowhere", **fields)


def buckets_of(index: Index) -> Counter[Bucket]:
    return Counter(sample.bucket for sample in index.samples)


def test_small_buckets_stay_unless_something_else_is_wished():
    index = Index(tuple(make_samples(("a", SQUARE, 4, 1), ("a", WIDE, 1, 1))))
    assert settle_small_buckets(index, [spec()], 4) == index


def test_a_small_bucket_goes_to_the_nearest_aspect_that_it_fills_a_batch_with():
    assert merge({SQUARE: 4, WIDE: 9, WIDER: 1, TALL: 3}, 4) == {WIDER: WIDE, TALL: SQUARE}
    assert merge({SQUARE: 1, WIDE: 2, TALL: 9}, 4) == {SQUARE: TALL, WIDE: TALL}, (
        "square fills none with wide, which is as near"
    )
    assert merge({SQUARE: 1, WIDE: 1, WIDER: 1}, 4) == {SQUARE: WIDE, WIDER: WIDE}, "no batch is filled, it is one bucket then"
    assert merge({SQUARE: 2, WIDE: 2, WIDER: 9}, 4) == {SQUARE: WIDE}, "together they fill one"
    assert merge({SQUARE: 1}, 4) == merge({SQUARE: 4, WIDE: 4}, 4) == {}


def test_merged_pictures_are_cropped_anew_and_repeats_count():
    wide = Facts(150, 50, "x")
    samples = make_samples(("a", SQUARE, 4, 2), ("a", TALL, 4, 2))
    odd = Sample("a", "odd", ("",), wide, WIDER, (), 2, reference=Reference(Path("before"), Facts(300, 100, "y"), WIDER, ()))
    moved = settle_small_buckets(Index((*samples, odd)), [spec(small_buckets="merge", horizontal_flip=True)], 4)
    assert buckets_of(moved) == {SQUARE: 5, TALL: 4}
    last, fit = moved.samples[-1], fit_centre(150, 50, SQUARE)
    assert last.path == odd.path and last.bucket == last.reference.bucket == SQUARE
    assert last.views == (fit, fit._replace(mirrored=True))
    assert last.reference.views[0] == fit_centre(300, 100, SQUARE)
    enough = settle_small_buckets(Index((*samples, odd)), [spec(small_buckets="merge")], 2)
    assert enough.samples[-1] == odd, "two passes fill a batch of two"


@pytest.mark.parametrize("kind", ["pixel_area", "area", "pixel"])
def test_buckets_of_another_resolution_are_not_merged_into(kind):
    resolution = {"pixel_area": [512, 1024], "area": [0.25, 1], "pixel": [512, 1024]}[kind]
    small, large = Bucket(512, 512), Bucket(1024, 1024)
    wide = {"pixel": Bucket(2048, 1024)}.get(kind, Bucket(1472, 704))
    index = Index(tuple(make_samples(("a", small, 9, 1), ("a", large, 9, 1), ("a", wide, 1, 1))))
    merged = settle_small_buckets(index, [spec(small_buckets="merge", resolution=resolution, resolution_type=kind)], 4)
    assert buckets_of(merged) == {small: 9, large: 10}


def test_dropped_pictures_are_named_with_the_reason_and_the_other_datasets_kept():
    index = Index(tuple(make_samples(("a", SQUARE, 4, 1), ("a", WIDE, 1, 1), ("b", WIDE, 1, 1))))
    left = settle_small_buckets(index, [spec(small_buckets="drop"), spec().model_copy(update={"id": "b"})], 4)
    assert [sample.dataset_id for sample in left.samples] == ["a"] * 4 + ["b"]
    [(dataset_id, path, reason)] = left.rejected
    assert (dataset_id, path) == ("a", Path("a/80x48/0"))
    assert reason == "its bucket 80x48 holds 1, less than a batch of 4, and small_buckets is 'drop'"


def test_a_dataset_of_small_buckets_alone_is_not_dropped_silently():
    index = Index(tuple(make_samples(("a", SQUARE, 3, 1), ("a", WIDE, 1, 1), ("b", WIDE, 8, 1))))
    with pytest.raises(JobError, match=r"none of its buckets fills a batch of 4 \(the fullest holds 3\)"):
        settle_small_buckets(index, [spec(small_buckets="drop")], 4)


def test_a_job_settles_its_small_buckets(tmp_path, caplog):
    folder = make_pictures(tmp_path, 4)  # 2 squares, a wide one and a tall one
    Image.new("RGB", (90, 90), "red").save(folder / "more.png")
    (folder / "more.txt").write_text("more")

    def names(wish: str) -> list[list[str]]:
        setup = setup_of([{"instance_data_dir": str(folder), "small_buckets": wish}], training={"train_batch_size": 3})
        batches = order_of(setup.job, setup.samples).indices_of_epoch(0)
        return sorted(sorted(setup.samples[index].path.stem for index in batch) for batch in batches)

    squares = ["ball_0", "ball_3", "more"]
    assert names("smaller_batch") == [squares, ["ball_1"], ["ball_2"]]
    assert names("drop") == [squares] and "ball_1.png, " in caplog.text and "holds 1, less than a batch of 3" in caplog.text
    assert [len(batch) for batch in names("merge")] in ([3, 2], [2, 3])
