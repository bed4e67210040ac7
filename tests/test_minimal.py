"""bakeoff as `pip install .` leaves it: with its own dependencies and theirs, and nothing else."""

import importlib.metadata
import json
import os
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bakeoff
import tiny
from bakeoff import runs

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

#: For each extra that a command may need, that command; `place` lays what it reads.
NEEDS = {
    "draw": "draw performer --output drawing.png",
    "sweep": "sweep sweep.json",
    "ray": "grid grid.json --ray local",
    "try": "try run",
    "export": "export run --format onnx --output exported",
    "peers": "bench --against performer-pytorch",
}
#: Those that no command needs.
TOOLS = {"docs", "fuzz", "lint", "mutation", "test"}

_CALL = """
import contextlib, importlib, io, json, sys
for module in sys.argv[1].split(): importlib.import_module(module)
from bakeoff import cli
for command in sys.argv[2:]:
    sys.argv = ["bakeoff", *command.split()]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            code = cli.main()
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([code, said.getvalue()]))
"""


def needed(requirements):
    """The distributions that `requirements` bring, theirs included."""
    found, waiting = {}, [(Requirement(line), "") for line in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        key = (canonicalize_name(requirement.name), *sorted(requirement.extras))
        if key in found or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        found[key] = importlib.metadata.distribution(requirement.name)
        lines = found[key].requires or []
        waiting += [(Requirement(line), e) for line in lines for e in ("", *requirement.extras)]
    return found.values()


@pytest.fixture(scope="module")
def minimal(tmp_path_factory):
    """An environment of those distributions alone, by links into this one."""
    site = tmp_path_factory.mktemp("site")
    for distribution in needed(PROJECT["dependencies"]):
        for name in {
            file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")
        }:
            if not (site / name).exists():
                (site / name).symlink_to(distribution.locate_file(name))
    source = Path(bakeoff.__file__).parents[1]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (source, site))), "PYTHONSAFEPATH": "1"}


@pytest.fixture
def place(tmp_path):
    spec = tiny.spec(tmp_path)
    own = ("train_file", "eval_file", "text_columns", "label_column", "model_name_or_path")
    values = {name: getattr(spec, name) for name in own} | {"output_dir": str(tmp_path / "out")}
    values |= {"search": {"learning_rate": [1e-4, 1e-3]}, "n_trials": 1, "held_out_samples": 40}
    (tmp_path / "sweep.json").write_text(json.dumps(values))
    tiny.mirror(tmp_path)
    values = {
        "tasks": ["sst2"],
        "attentions": ["dense"],
        "data_dir": str(tmp_path),
        "model_name_or_path": "encoder",
    }
    (tmp_path / "grid.json").write_text(json.dumps(values))
    (tmp_path / "run").mkdir()
    record = ROOT / "tests" / "records" / f"schema-{runs.SCHEMA}.json"
    (tmp_path / "run" / runs.RECORD).write_bytes(record.read_bytes())
    return tmp_path


def test_every_extra_has_a_command_or_is_a_tool():
    assert PROJECT["optional-dependencies"].keys() == NEEDS.keys() | TOOLS


def test_every_module_is_imported_and_every_extra_that_is_missing_is_said(minimal, place):
    modules = [module.name for module in pkgutil.walk_packages(bakeoff.__path__, "bakeoff.")]
    assert len(modules) > 60
    modules.remove("bakeoff.__main__")  # which runs
    call = [sys.executable, "-S", "-c", _CALL, " ".join(modules), *NEEDS.values()]
    made = subprocess.run(call, env=minimal, cwd=place, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "Traceback" not in made.stderr  # of a child
    ended = [json.loads(line) for line in made.stdout.splitlines()]
    for extra, (code, said) in zip(NEEDS, ended, strict=True):
        assert code == 2, said
        assert said.startswith("error: ")
        assert f"'.[{extra}]' in bakeoff's checkout" in said.replace('"', "'")
        assert said.count("\n") == 1


def test_the_oldest_versions_are_those_that_are_promised():
    lines = (ROOT / "requirements" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = dict(line.split("==") for line in lines if not line.startswith("#"))
    extras = PROJECT["optional-dependencies"]
    promised = PROJECT["dependencies"] + [
        line for extra in extras if extra not in ("lint", "fuzz", "mutation") for line in extras[extra]
    ]
    bounds = {r.name: r.specifier for r in map(Requirement, promised) if r.name != "bakeoff"}
    assert oldest.keys() == bounds.keys()
    for name, specifier in bounds.items():
        (least,) = (s.version for s in specifier if s.operator == ">=")
        assert f"{oldest[name]}.".startswith(f"{least}."), name


def test_nothing_but_what_is_needed_is_there(minimal):
    """Or the test above would say nothing."""
    code = "import importlib.util, sys; print([n for n in sys.argv[1:] if importlib.util.find_spec(n)])"
    names = [
        "torch",
        "optuna",
        "ray",
        "starlette",
        "uvicorn",
        "onnx",
        "matplotlib",
        "sklearn",
        "peft",
        "pytest",
    ]
    made = subprocess.run(
        [sys.executable, "-S", "-c", code, *names], env=minimal, capture_output=True, text=True
    )
    assert made.stdout.strip() == "['torch']", made.stderr
