"""The import rules that keep the rooms apart."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import bakeoff

ROOT = Path(bakeoff.__file__).parent
HEAVY = {"torch", "transformers"}


def imported(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", sorted((ROOT / "attention").glob("*.py")), ids=lambda p: p.stem)
def test_attention_imports_torch_alone(path):
    names = imported(path)
    assert not top(names) & {"transformers", "numpy", "datasets"}
    ours = {name for name in names if name.startswith("bakeoff.")}
    assert all(name.startswith(("bakeoff.attention", "bakeoff.errors")) for name in ours)


def test_fast_code_never_imports_the_reference():
    """But for the gate of `bench`, which holds the fast code to it before it times anything."""
    for path in ROOT.rglob("*.py"):
        if path.name != "reference.py" and path != ROOT / "bench" / "gate.py":
            assert not any("attention.reference" in name for name in imported(path)), path


def test_rooms_import_in_one_direction():
    """A circle, hidden by a late import or not, makes of two modules or packages one."""
    rooms = defaultdict(set)
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if not room.startswith("__"):
            targets = {name.split(".")[1] for name in imported(path) if name.startswith("bakeoff.")}
            rooms[room] |= targets - {room}
    assert {"training", "comparison"} <= rooms.keys()
    TopologicalSorter(rooms).prepare()


TORCHLESS = [
    *(ROOT / f"{name}.py" for name in ("errors", "recipes", "stats", "runs", "metrics", "spec", "text")),
    *(ROOT / "bench" / f"{name}.py" for name in ("spec", "result", "picture", "tables")),
    ROOT / "export" / "card.py",
    *(path for package in ("comparison", "report", "svg") for path in sorted((ROOT / package).glob("*.py"))),
]


@pytest.mark.parametrize("path", TORCHLESS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_comparing_and_reporting_never_import_torch(path):
    assert not top(imported(path)) & HEAVY


@pytest.mark.parametrize(
    "path", [ROOT / "encode.py", *sorted((ROOT / "tasks").glob("*.py"))], ids=lambda p: p.stem
)
def test_reading_rows_never_imports_torch(path):
    assert "torch" not in top(imported(path))


def test_no_pickle_and_no_remote_code_anywhere():
    for path in ROOT.rglob("*.py"):
        assert not top(imported(path)) & {"pickle", "dill", "joblib", "cloudpickle", "marshal"}, path
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text
        assert "yaml.load(" not in text
        assert "torch.load(" not in text
