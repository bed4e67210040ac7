"""Shared by all tests: one thread, no network, the place of real data."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """A local mirror of the real tasks; tests that need it skip without it."""
    here = os.environ.get("BAKEOFF_DATA_DIR")
    path = Path(here) if here else Path(__file__).parents[2] / "shared" / "data"
    if not (path / "sst2" / "train.parquet").is_file():
        pytest.skip("no mirror of the real tasks: set BAKEOFF_DATA_DIR")
    return path
