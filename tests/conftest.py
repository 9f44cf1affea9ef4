"""Fixtures that many tests share."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it then

import slow_tier

from support import make_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all runs of the session: entries are named by what they are made from."""
    return tmp_path_factory.mktemp("cache")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests run where they are asked for."""
    if not os.environ.get("FLUX_LORA_SLOW"):
        for item in items:
            if item.get_closest_marker("slow") or slow_tier.is_left_out(item):
                item.add_marker(pytest.mark.skip(reason="slow: set FLUX_LORA_SLOW=1 to run it"))
