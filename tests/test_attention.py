"""attention_mechanism: what is not installed, or cannot do what is asked, is refused before anything is loaded."""

import pytest
import torch

from support import job_data
from trainer_core.errors import JobError
from trainer_core.flux.attention import BACKENDS, PACKAGES, attending, check_attention, check_place
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import load_transformer
from trainer_core.flux.predict import predict_velocity
from trainer_core.job_file import parse_job
from trainer_core.setup import prepare
from trainer_core.specs.base import BaseModelSpec

CPU = torch.device("cpu")


def test_every_choice_has_a_backend():
    choices = BaseModelSpec.model_fields["attention_mechanism"].annotation.__args__
    assert set(choices) == BACKENDS.keys() == {"diffusers", *PACKAGES}


@pytest.mark.parametrize("mechanism", PACKAGES)
def test_what_is_not_installed_is_named_with_the_command_that_gets_it(mechanism, pictures):
    job = parse_job(job_data(pictures, base={"attention_mechanism": mechanism}))
    with pytest.raises(JobError, match=rf"pip install {PACKAGES[mechanism]}, or choose 'diffusers'"):
        prepare(job)


@pytest.mark.parametrize("mechanism", ["flash", "sageattention", "xformers"])
def test_kernels_without_masks_are_refused_where_text_is_masked(mechanism):
    with pytest.raises(JobError, match="knows no masks"):
        check_attention(mechanism, masked=True, precision="no_change")


def test_sage_is_refused_on_nf4():
    with pytest.raises(JobError, match="choose 'diffusers'"):
        check_attention("sageattention", masked=False, precision="nf4-bnb")


def test_kernels_of_a_card_are_refused_without_one_and_in_float32():
    card = torch.device("cuda")
    for mechanism in PACKAGES:
        with pytest.raises(JobError, match="runs on a card only"):
            check_place(mechanism, CPU, torch.bfloat16)
        check_place(mechanism, card, torch.bfloat16)
    for mechanism in ("flash", "sageattention"):
        with pytest.raises(JobError, match="needs mixed_precision 'bf16'"):
            check_place(mechanism, card, torch.float32)
    check_place("xformers", card, torch.float32)
    check_place("diffusers", CPU, torch.float32)


def test_training_with_sage_attends_as_torch_does():
    transformer = load_transformer(PICO_FILES.transformer, torch.float32, CPU)
    random = torch.Generator().manual_seed(0)
    x, text, pooled = (torch.randn(shape, generator=random) for shape in ((1, 16, 8, 8), (1, 32, 128), (1, 64)))
    inputs = (x, torch.tensor([0.5]), text, pooled, torch.ones(1))
    expected = predict_velocity(transformer, *inputs)
    with attending("sageattention", training=True):
        assert torch.equal(predict_velocity(transformer, *inputs), expected)
