"""Fixtures that many tests share."""

import gc
import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it then
gc.disable()  # until all is imported and collected: none of it is garbage

import slow_tier  # noqa: E402

from support import make_pictures  # noqa: E402

LONGEST = (
    "test_faults.py",
    "test_run.py",
    "test_plan.py",
    "test_processes.py",
    "test_optim.py",
    "test_adapter.py",
    "test_quantize.py",
    "test_references.py",
    "test_model_files.py",
    "test_loop.py",
)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all runs of the session: entries are named by what they are made from."""
    return tmp_path_factory.mktemp("cache")


def pytest_collection_finish() -> None:
    """What is there stays to the end, and is not searched again at each collection; that takes a fifth off a small run."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests run where they are asked for. The longest files come first: no worker is to be alone with one at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    if not os.environ.get("FLUX_LORA_SLOW"):
        for item in items:
            if item.get_closest_marker("slow") or slow_tier.is_left_out(item):
                item.add_marker(pytest.mark.skip(reason="slow: set FLUX_LORA_SLOW=1 to run it"))
