"""Shared by all tests: one thread, no network, the place of real data, a browser."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from browser import browser as browser


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """A local mirror of the real tasks; tests that need it skip without it."""
    here = os.environ.get("BAKEOFF_DATA_DIR")
    path = Path(here) if here else Path(__file__).parents[2] / "shared" / "data"
    if not (path / "sst2" / "train.parquet").is_file():
        pytest.skip("no mirror of the real tasks: set BAKEOFF_DATA_DIR")
    return path


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command line in this process: (exit code, stdout, stderr)."""
    from bakeoff import cli

    monkeypatch.setattr(cli.out, "_width", 200, raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bakeoff", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(autouse=True)
def sparse_at_short_lengths(monkeypatch, request) -> None:
    """Windows are computed as windows, however short the sequence, unless a test is marked otherwise."""
    if not request.node.get_closest_marker("dense_rule"):
        from bakeoff.attention import longformer

        monkeypatch.setattr(longformer, "DENSE_UP_TO", 0)
        monkeypatch.setattr(longformer, "DENSE_WINDOWS", 0)
