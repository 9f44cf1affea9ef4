"""A checkpoint keeps the losses of all steps in a file of their own, so what else it holds does not grow with the steps."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import Parameter

from trainer_core.checkpoint import LOSSES_FILE, restore_latest, save_checkpoint
from trainer_core.history import History
from trainer_core.saved import STATE_FILE
from trainer_core.writing import read_sealed, write_sealed


@pytest.fixture
def parts():
    """What is trained, and its optimiser."""
    parameters = {"a": Parameter(torch.ones(2))}
    return parameters, torch.optim.AdamW(parameters.values())


def saved(folder, parts, losses):
    return save_checkpoint(folder, *parts, None, History(losses=losses, started="2026-11-26"), lambda partial: None, keep=3)


def test_the_losses_come_back_to_the_bit(tmp_path, parts):
    losses = [1 / 3, 2e-300, 0.1 + 0.2]
    path = saved(tmp_path, parts, losses)
    assert restore_latest(tmp_path, *parts, None) == History(losses=losses, started="2026-11-26")
    assert load_file(path / LOSSES_FILE)["losses"].dtype == torch.float64
    assert LOSSES_FILE in read_sealed(path / STATE_FILE)["digests"]


def test_state_json_does_not_grow_with_the_steps(tmp_path, parts):
    few, many = (saved(tmp_path, parts, [0.5] * steps) / STATE_FILE for steps in (1, 5000))
    assert few.stat().st_size == many.stat().st_size


def test_a_checkpoint_of_an_earlier_version_has_the_losses_in_state_json(tmp_path, parts):
    path = saved(tmp_path, parts, [0.5, 0.25])
    state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    del state["digests"][LOSSES_FILE], state["sha256"]
    state["history"]["losses"] = [0.5, 0.25]
    (path / LOSSES_FILE).unlink()
    write_sealed(path / STATE_FILE, state)
    assert restore_latest(tmp_path, *parts, None).losses == [0.5, 0.25]
