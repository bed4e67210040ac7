"""Every notebook runs from its first cell to its last: offline, on a tiny encoder and a mirror made here."""

import os
from pathlib import Path

import nbclient
import nbformat
import pytest

import tiny

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    tiny.encoder(folder / "encoder")
    tiny.mirror(folder / "mirror")
    tiny.write(folder / "train.csv", tiny.texts(64, 0))
    tiny.write(folder / "eval.csv", tiny.texts(40, 1))
    return folder


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs_to_its_end(path, place, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # no rows of a data set are committed
    (first, *_) = (cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source.startswith("MODEL = ")  # the one cell with settings; these replace them
    settings = {"MODEL": str(place / "encoder"), "RUNS": str(tmp_path), "TRAIN_ROWS": 48, "EVAL_ROWS": 40}
    if path.stem == "choose":
        settings |= {"TRAIN": str(place / "train.csv"), "EVAL": str(place / "eval.csv")}
    first.source += "".join(f"\n{name} = {value!r}" for name, value in settings.items())
    monkeypatch.setenv("BAKEOFF_DATA_DIR", str(place / "mirror"))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = {kind for cell in notebook.cells for o in cell.get("outputs", ()) for kind in o.get("data", ())}
    assert "text/html" not in kinds  # Trainer's own table of losses, a row a point of the curve
    shown = "\n".join(
        output["data"].get("text/markdown", "")
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "data" in output
    )
    for attention in ("dense", "longformer", "bigbird", "performer", "linformer"):
        assert f"| {attention}" in shown
    assert len([folder for folder in tmp_path.iterdir() if (folder / "run.json").exists()]) == 5
