"""Fixtures that many tests share."""

import os
from pathlib import Path

import pytest

from support import make_pictures

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all runs of the session: entries are named by what they are made from."""
    return tmp_path_factory.mktemp("cache")
