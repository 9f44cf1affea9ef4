"""The held-out loss: the same number whenever the adapter is the same, and only then."""

import pytest
import torch
from test_masks import left_half, masks_for

from support import encoded, job_data, make_pictures, run_in_process
from trainer_core import flow
from trainer_core.data.buckets import Bucket
from trainer_core.data.sample import Facts, Sample
from trainer_core.errors import JobError
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import load_transformer
from trainer_core.flux.predict import predict_velocity
from trainer_core.history import Evaluation, History
from trainer_core.job_file import parse_job
from trainer_core.rng import generator
from trainer_core.setup import prepare
from trainer_core.validation.evaluate import choose, losses_of, overfitting


def right_half(canvas, width, height):
    canvas.rectangle((width // 2, 0, width, height), fill=255)


@pytest.fixture
def data(tmp_path, pictures) -> dict:
    """Trains on six pictures, judges on four others."""
    make_pictures(tmp_path / "held-out", 4)
    job = job_data(pictures, validation={"eval_steps_interval": 2, "num_eval_images": 3, "eval_timesteps": 2})
    job["datasets"].append({"id": "held-out", "dataset_type": "eval", "instance_data_dir": str(tmp_path / "held-out")})
    return job


def test_held_out_pictures_are_judged_and_never_trained_on(tmp_path, cache, data):
    with_them = run_in_process(parse_job(data), tmp_path / "with", cache)
    assert [e["step"] for e in with_them["evaluations"]] == [0, 2, 4, 6]
    data["datasets"].pop()
    data["validation"] = {"num_validation_images": 0}
    without = run_in_process(parse_job(data), tmp_path / "without", cache)
    assert with_them["losses"] == without["losses"]


def test_a_held_out_loss_is_the_mean_over_fixed_noise_and_noise_levels(tmp_path, cache, data):
    """Computed here once more, from the base alone, for step 0."""
    data["validation"]["num_eval_images"] = 1
    result = run_in_process(parse_job(data), tmp_path / "runs", cache)
    setup = prepare(parse_job(data))
    sample = setup.eval_samples[0]
    caches = encoded(setup.eval_samples, cache)
    base = load_transformer(PICO_FILES.transformer, torch.float32, torch.device("cpu"))
    expected = []
    for held_out in setup.eval_samples:
        latent = caches.latent(held_out).unsqueeze(0)
        noise = torch.randn(latent.shape, generator=generator(0, 0, sample.path.name))
        caption = caches.text(held_out.caption)
        losses = {}
        for sigma in (0.25, 0.75):
            told = torch.tensor([sigma])
            x = flow.add_noise(latent, noise, told)
            with torch.no_grad():
                velocity = predict_velocity(base, x, told, caption["text"][None], caption["pooled"][None], torch.tensor([1.0]))
            losses[f"{sigma}"] = (velocity - (noise - latent)).square().mean().item()
        expected.append(losses)
    found = result["evaluations"][0]["by_dataset"]["held-out"]
    assert any(found == pytest.approx(losses, rel=1e-4) for losses in expected)
    assert result["evaluations"][0]["loss"] == pytest.approx(sum(found.values()) / 2)


def test_the_choice_is_even_over_each_dataset():
    def sample(dataset: str, number: int) -> Sample:
        return Sample(dataset, f"{number}.png", ("",), Facts(64, 64, ""), Bucket(64, 64), ())

    samples = tuple(sample("a", n) for n in range(9)) + tuple(sample("b", n) for n in range(2))
    assert [(s.dataset_id, s.path.stem) for s in choose(samples, 3)] == [
        ("a", "0"),
        ("a", "3"),
        ("a", "6"),
        ("b", "0"),
        ("b", "1"),
    ]


def test_eval_data_and_its_interval_go_together(data, pictures):
    data["validation"] = {"num_validation_images": 0}
    with pytest.raises(JobError, match="goes together"):
        parse_job(data)
    with pytest.raises(JobError, match="all are for evaluation"):
        parse_job({"datasets": [{"instance_data_dir": str(pictures), "dataset_type": "eval"}]})


def test_masks_count_only_where_that_is_asked_for(tmp_path, pictures, cache):
    """And then the two halves of a picture add up to the whole: a weight of 0 or 1 for each cell of the latent."""
    losses, sigmas = {}, torch.tensor([0.3, 0.7])
    base = load_transformer(PICO_FILES.transformer, torch.float32, torch.device("cpu"))
    for name, draw, masked in (("whole", left_half, False), ("left", left_half, True), ("right", right_half, True)):
        dataset = {"instance_data_dir": str(pictures), "mask_data_dir": str(masks_for(pictures, tmp_path / name, draw))}
        dataset |= {"mask_background_weight": 0.0}
        validation = {"num_held_out": 1, "eval_steps_interval": 1, "eval_masked": masked}
        setup = prepare(parse_job(job_data(pictures, datasets=[dataset], validation=validation)))
        (sample,) = setup.eval_samples
        losses[name] = losses_of(setup, base, sample, encoded(setup.eval_samples, cache), sigmas)
    torch.testing.assert_close(losses["left"] + losses["right"], losses["whole"])
    assert losses["left"].min() > 0 and losses["right"].min() > 0


# Pictures set aside


def test_pictures_set_aside_are_never_trained_on_and_stay_the_same_when_others_come(tmp_path):
    folder = make_pictures(tmp_path / "pictures", 6)

    def sides(**dataset) -> tuple[set[str], set[str]]:
        spec = {"instance_data_dir": str(folder), "horizontal_flip": True, "repeats": 2} | dataset
        data = job_data(folder, datasets=[spec], validation={"num_held_out": 2, "eval_steps_interval": 2})
        setup = prepare(parse_job(data))
        assert {sample.dataset_id for sample in setup.eval_samples} == {"pictures held out"}
        assert all(len(sample.views) == 1 == sample.passes for sample in setup.eval_samples)
        assert setup.num_steps == data["training"]["max_train_steps"]
        return tuple({sample.path.name for sample in part} for part in (setup.samples, setup.eval_samples))

    trained, aside = sides()
    assert len(trained) == 4 and len(aside) == 2 and not trained & aside
    assert sides(resolution=[48, 64]) == (trained, aside)
    (folder / "twin.png").write_bytes((folder / min(aside)).read_bytes())
    (folder / "twin.txt").write_text("its twin")
    assert sides() == (trained, aside | {"twin.png"})
    with pytest.raises(JobError, match="num_held_out is 6, but dataset 'pictures' has only 6 different pictures"):
        prepare(parse_job(job_data(folder, validation={"num_held_out": 6, "eval_steps_interval": 2})))


def test_learning_by_heart_is_told_once_a_span():
    def notices(held_out: list[float], falling: bool) -> list[int]:
        history, told = History(), []
        for number, loss in enumerate(held_out):
            history.losses += [1 - 0.01 * falling * (len(history.losses) + offset) for offset in range(10 * bool(number))]
            history.evaluations.append(Evaluation(len(history.losses), loss, {}))
            if overfitting(history):
                told.append(number)
        return told

    rising = [5.0, 4.0, 4.1, 4.2, 4.3, 4.4, 4.5, 4.6]
    assert notices(rising, falling=True) == [4, 7]
    assert notices(rising, falling=False) == [] == notices([5.0, 4.0, 4.1, 4.0, 4.1, 4.0], falling=True)
