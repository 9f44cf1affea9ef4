"""Formats that a processor has to emulate are told of before the training, not noticed after a night of it."""

import logging

import pytest
import torch

from trainer_core.cpu_speed import bf16_slowdown
from trainer_core.setup import MAX_SLOWDOWN, warn_of_slow_bf16

CPU = torch.device("cpu")


def test_a_slow_bf16_is_warned_of_and_float32_never(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "trainer_core"):
        warn_of_slow_bf16(CPU, torch.float32)
        assert not caplog.records
        warn_of_slow_bf16(CPU, torch.bfloat16)
    assert bool(caplog.records) == (bf16_slowdown() > MAX_SLOWDOWN)
    assert all("base.mixed_precision 'no'" in record.getMessage() for record in caplog.records)
