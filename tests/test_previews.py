"""Pictures are shown while they are made: where there is TAEF1's decoder, cheaply, and without a trace in the pictures."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from support import job_data, run_in_process
from trainer_core.errors import JobError
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import load_transformer
from trainer_core.flux.vae import load_decoder, load_vae
from trainer_core.job_file import parse_job
from trainer_core.run_dir import run_dir_for
from trainer_core.setup import prepare
from trainer_core.specs.base import BaseModelSpec
from trainer_core.validation.previews import Previews, find_decoder, preview_steps
from trainer_core.validation.sample import Encoded, SamplerSettings, sample_latents
from trainer_core.validation.shots import Canvas, Shot

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    """pico's decoder in a file of its own, named as ComfyUI's vae_approx folder has FLUX's."""
    path, part = tmp_path_factory.mktemp("vae_approx") / "taef1_decoder.safetensors", "taesd_decoder."
    tensors = load_file(PICO_FILES.vae)
    save_file({name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}, path)
    return path


def test_a_decoder_in_a_file_of_its_own_decodes_as_the_whole_vae(decoder):
    latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = load_vae(PICO_FILES.vae, CPU).decode(latent)
    for path in (decoder, PICO_FILES.vae):
        assert torch.equal(load_decoder(path, CPU).decode(latent), expected)


def test_a_file_that_is_no_decoder_is_told_before_any_training(decoder):
    named = BaseModelSpec(preview_decoder_path=str(decoder))
    assert find_decoder(named, PICO_FILES) == decoder and find_decoder(BaseModelSpec(), PICO_FILES) == PICO_FILES.vae
    for path in (PICO_FILES.transformer, decoder.with_name("none.safetensors")):
        with pytest.raises(JobError, match="is not TAEF1's decoder; choose taef1_decoder"):
            find_decoder(BaseModelSpec(preview_decoder_path=str(path)), PICO_FILES)


def test_previews_come_after_each_quarter_of_the_steps():
    assert [sorted(preview_steps(num)) for num in (1, 2, 4, 20)] == [[], [1], [1, 2, 3], [5, 10, 15]]


def test_previews_change_no_bit_of_the_picture_and_no_random_state(decoder, tmp_path):
    transformer = load_transformer(PICO_FILES.transformer, torch.float32, CPU)
    random = torch.Generator().manual_seed(0)
    asked = [Encoded(torch.randn(1, 32, 128, generator=random), torch.randn(1, 64, generator=random)) for _ in range(4)]
    canvas, settings = Canvas(1024, 16, 3), SamplerSettings(4, 2.0, 2.5, 3.0)
    shots, shown = [Shot(name, name, "", canvas) for name in ("one", "two")], []
    previews = Previews(decoder, CPU, shots, tmp_path, lambda shot, path: shown.append((shot.name, path)))
    arguments = (transformer, asked[:2], asked[2:], settings, canvas)
    without, state = sample_latents(*arguments), torch.get_rng_state()
    assert torch.equal(sample_latents(*arguments, foresee=previews), without)
    assert torch.equal(torch.get_rng_state(), state)
    assert [(name, path.name) for name, path in shown] == [("one", f"one-00{step}.jpg") for step in (1, 2, 3)]
    assert Image.open(shown[0][1]).size == (512, 8)  # of 1024 x 16


def test_a_run_tells_of_its_previews_and_the_manifest_where_they_come_from(tmp_path, pictures, cache):
    validation = {"validation_prompts": ["a ball"], "num_validation_images": 4, "validation_num_inference_steps": 4}
    data = job_data(pictures, validation=validation | {"validation_seed": 77}, training={"max_train_steps": 1})
    run = Path(run_in_process(parse_job(data), tmp_path, cache)["run_dir"])
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    told = [(event["step"], event["index"]) for event in events if event["event"] == "preview"]
    assert told == [(0, 0)] * 3 + [(1, 0)] * 3
    kinds = [event["event"] for event in events if event["event"] in ("preview", "sample")]
    assert kinds == (["preview"] * 3 + ["sample"]) * 2
    assert Image.open(run / "previews" / "00-003.jpg").size == (64, 64)
    assert json.loads((run / "manifest.json").read_text(encoding="utf-8"))["previews"] == str(PICO_FILES.vae)


def test_a_decoder_makes_no_other_run_of_a_job(decoder, pictures, tmp_path):
    plain = job_data(pictures)
    named = job_data(pictures, base={"preview_decoder_path": str(decoder)})
    assert prepare(parse_job(named)).preview_decoder == decoder
    assert run_dir_for(parse_job(plain), tmp_path) == run_dir_for(parse_job(named), tmp_path)
