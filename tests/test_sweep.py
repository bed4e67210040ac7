"""Sweeps: what is searched and on which rows, what survives an interruption, and what comes of it."""

import dataclasses
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from bakeoff import grid, runs, sweep
from bakeoff.errors import BakeoffError, FailedError
from bakeoff.sweep import Range, SweepSpec

optuna = pytest.importorskip("optuna")
sqlalchemy = pytest.importorskip("sqlalchemy")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def values(shared, folder, **changes):
    spec = tiny.spec(shared, attention="linformer:projected_length=6,global_tokens=2", num_train_epochs=1)
    kept = ("train_file", "eval_file", "text_columns", "label_column", "model_name_or_path", "attention")
    base = {k: v for k, v in spec.to_dict().items() if k in (*kept, "num_train_epochs")}
    return base | {
        "search": {
            "learning_rate": {"low": "1e-5", "high": 1e-2, "log": True},
            "attention.projected_length": [4, 8],
        },
        "n_trials": 3,
        "held_out_samples": 40,
        "evaluations": 2,
        "seeds": [1, 2],
        "output_dir": str(folder),
        **changes,
    }


def study_of(folder):
    return optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / sweep.DATABASE}")


def test_the_report_needs_no_scikit_learn(tmp_path, monkeypatch):
    study = optuna.create_study(direction="maximize")
    study.optimize(lambda t: t.suggest_float("a", 0, 1) + t.suggest_int("b", 1, 3), n_trials=12)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    sweep._write_report(study, tmp_path / sweep.REPORT)
    assert "Hyperparameter Importances" in (tmp_path / sweep.REPORT).read_text()


def test_a_sweep_searches_and_makes_the_best_again(shared, tmp_path):
    said, spec = [], SweepSpec.from_dict(values(shared, tmp_path / "sweep"))
    made = list(sweep.run(spec, progress=False, say=lambda spec, record: said.append(record)))
    study = study_of(tmp_path / "sweep")
    assert len(study.trials) == len(said) == 3
    best = max((r for r in said if r.status == "ok"), key=lambda r: r.metrics["accuracy"].value)
    assert study.best_value == best.metrics["accuracy"].value
    assert [record.spec["seed"] for _, record in made] == [1, 2]
    for _, record in made:
        assert record.status == "ok", record.error
        assert (
            record.spec["learning_rate"] == best.spec["learning_rate"] == study.best_params["learning_rate"]
        )
        assert record.spec["attention"] == best.spec["attention"]
        assert record.spec["held_out_samples"] is record.spec["eval_steps"] is None
        assert record.data.splits["eval"].rows == 60
        assert record.data.splits["train"].rows == 256
    for record in said:
        assert record.data.splits["eval"].rows == 40
        assert record.data.splits["train"].rows == 216
        assert 1e-5 <= record.spec["learning_rate"] <= 1e-2
        assert record.spec["attention"]["options"]["projected_length"] in (4, 8)
    page = (tmp_path / "sweep" / sweep.REPORT).read_text()
    assert "Plotly.newPlot" in page
    assert "attention.projected_length" in page
    assert "http-equiv" not in page

    again = list(sweep.run(spec, progress=False, say=lambda spec, record: pytest.fail("a fourth trial")))
    assert [record for _, record in again] == [record for _, record in made]


def test_a_trial_that_lags_is_stopped(shared, tmp_path, monkeypatch):
    """Seven trials; the last two do worse than the median of the first five at their first evaluation."""
    spec = SweepSpec.from_dict(values(shared, tmp_path / "sweep", n_trials=7, seeds=[1]))
    numbers, stopped = iter(range(7)), []

    def run(specs, *, progress, watch=None, ray=None):
        return [(spec, cell(spec, watch)) for spec in specs]

    def cell(run, watch):
        record = runs.RunRecord(
            id="x", status="ok", digest="", spec=run.to_dict(), started="", seconds=0.0, environment={},
            metrics={"accuracy": runs.Metric(0.9)},
        )  # fmt: skip
        if watch is None or not watch(1, {"eval_accuracy": 0.9 - 0.1 * (next(numbers) > 4)}):
            return record
        stopped.append(run)
        return dataclasses.replace(record, status="stopped", metrics={})

    monkeypatch.setattr(grid, "run", run)
    list(sweep.run(spec, progress=False))
    states = [trial.state.name for trial in study_of(tmp_path / "sweep").trials]
    assert states == ["COMPLETE"] * 5 + ["PRUNED"] * 2
    assert len(stopped) == 2


def test_trials_that_fail_count_and_are_said(shared, tmp_path, monkeypatch):
    record = runs.RunRecord(
        id="x", status="oom", digest="", spec={}, started="", seconds=0.0, environment={}, error="no room"
    )
    monkeypatch.setattr(grid, "run", lambda specs, **kwargs: [(specs[0], record)])
    spec = SweepSpec.from_dict(values(shared, tmp_path / "sweep"))
    with pytest.raises(FailedError, match="no trial of the sweep ended well: x: oom: no room"):
        list(sweep.run(spec, progress=False))
    assert len(study_of(tmp_path / "sweep").trials) == 3


def test_an_interrupted_trial_is_made_again(shared, tmp_path, monkeypatch):
    spec = SweepSpec.from_dict(values(shared, tmp_path / "sweep", n_trials=2, seeds=[1]))
    made, asked = grid.run, []

    def interrupted(specs, **kwargs):
        asked.extend(specs)
        raise KeyboardInterrupt

    monkeypatch.setattr(grid, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(sweep.run(spec, progress=False))

    def counted(specs, **kwargs):
        asked.extend(specs)
        return made(specs, **kwargs)

    monkeypatch.setattr(grid, "run", counted)
    list(sweep.run(spec, progress=False))
    assert asked[0] == asked[1]
    states = [trial.state.name for trial in study_of(tmp_path / "sweep").trials]
    assert states == ["FAIL", "COMPLETE", "COMPLETE"]


def test_two_workers_share_a_study(shared, tmp_path):
    """Two processes on one database: as many trials as asked for or one more, and the best made once."""
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(values(shared, tmp_path / "sweep", n_trials=4)))
    command = [sys.executable, "-m", "bakeoff", "sweep", str(file)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outs = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outs
    trials = study_of(tmp_path / "sweep").trials
    assert 4 <= len(trials) <= 5
    assert sum(out.count("trial: ") for out in outs) == len(trials)
    made = [record for _, record in runs.find(tmp_path / "sweep" / sweep.BEST)]
    assert sorted(record.spec["seed"] for record in made) == [1, 2]
    assert all(record.status == "ok" for record in made)


def test_the_file_is_checked_before_the_first_trial(shared, tmp_path):
    for changes, said in [
        ({"search": {}}, "a sweep needs 'search'"),
        ({"search": {"learning_rat": [1e-4, 1e-3]}}, "Did you mean 'learning_rate'"),
        ({"search": {"learning_rate": [1e-4]}}, "a list of two or more choices"),
        ({"search": {"learning_rate": {"low": 1e-3, "high": 1e-4}}}, "low < high"),
        ({"search": {"learning_rate": {"low": 0, "high": 1e-4, "log": True}}}, "above 0"),
        ({"search": {"learning_rate": {"low": -1.0, "high": 1e-4}}}, "learning_rate must be above 0"),
        ({"search": {"seed": [1, 2]}}, "'seed' cannot be searched"),
        ({"search": {"attention": ["dense", "performer"]}}, "'attention' cannot be searched"),
        ({"search": {"held_out_samples": [10, 20]}}, "'held_out_samples' cannot be searched"),
        ({"search": {"attention.projected_length": [[4, 4], [8, 8]]}}, "takes numbers and texts as choices"),
        ({"seeds": 3}, "seeds are whole numbers"),
        ({"n_trials": 0}, "n_trials is a whole number from 1 up"),
        ({"held_out_samples": True}, "held_out_samples is a whole number"),
        ({"seeds": []}, "seeds are whole numbers"),
        ({"seeds": [1, -1]}, "seed must not be negative"),
        ({"seeds": [2**32]}, "seed must be below"),
        ({"search": {"learning_rate": {"low": 1e-5, "high": 1e-4, "log": "false"}}}, "log: true for"),
        ({"search": {"learning_rate": {"low": True, "high": 2}}}, "low < high"),
        ({"learning_rte": 1}, "unknown field 'learning_rte'"),
        ({"base": {"max_length": 64}}, "unknown field 'base'"),
    ]:
        with pytest.raises(BakeoffError, match=said):
            SweepSpec.from_dict(values(shared, tmp_path, **changes))
    assert SweepSpec.from_dict(values(shared, tmp_path)).search["learning_rate"] == Range(1e-5, 1e-2, True)
    spec = SweepSpec.from_dict(values(shared, tmp_path / "sweep"))
    for url in ("nonsense", f"sqlite:///{tmp_path}/no/such/folder.db", "nosuch://host/db"):
        with pytest.raises(BakeoffError, match=r"not a database for the sweep .*--storage"):
            list(sweep.run(spec, storage=url, progress=False))
    assert not list(Path(tmp_path / "sweep").glob("*/*/run.json"))


def test_what_no_trial_could_run_with_is_said_before_there_is_one(shared, tmp_path):
    for changes, said in [
        ({"held_out_samples": 256}, "held_out_samples 256, but there are 256 training rows"),
        ({"search": {"attention.projected_lenth": [4, 8]}}, "Did you mean 'projected_length'"),
        ({"model_name_or_path": str(shared / "nowhere")}, "nowhere"),
    ]:
        spec = SweepSpec.from_dict(values(shared, tmp_path / "sweep", **changes))
        with pytest.raises(BakeoffError, match=said):
            list(sweep.run(spec, progress=False))
    assert not (tmp_path / "sweep" / sweep.DATABASE).exists()


def test_a_study_is_not_gone_on_with_for_another_sweep(shared, tmp_path, monkeypatch):
    record = runs.RunRecord(
        id="x", status="ok", digest="", spec={}, started="", seconds=0.0, environment={},
        metrics={"accuracy": runs.Metric(0.9)},
    )  # fmt: skip
    monkeypatch.setattr(grid, "run", lambda specs, **kwargs: [(spec, record) for spec in specs])
    first = values(shared, tmp_path / "sweep", n_trials=1)
    list(sweep.run(SweepSpec.from_dict(first), progress=False))
    list(sweep.run(SweepSpec.from_dict(first | {"n_trials": 2, "seeds": [7]}), progress=False))
    assert len(study_of(tmp_path / "sweep").trials) == 2
    for changes in (
        {"num_train_epochs": 2},
        {"held_out_samples": 50},
        {"search": {"warmup_steps": [0.0, 0.1]}},
    ):
        with pytest.raises(
            BakeoffError, match="holds another sweep named sweep; choose another --output-dir"
        ):
            list(sweep.run(SweepSpec.from_dict(first | changes), progress=False))


def test_trials_on_other_rows_are_another_sweep(shared, tmp_path):
    given = values(shared, tmp_path / "sweep")
    file = tmp_path / "train.csv"
    file.write_text(Path(given["train_file"]).read_text())
    spec = SweepSpec.from_dict(given | {"train_file": str(file)})
    before = spec.identity()
    assert spec.identity() == before
    file.write_text(file.read_text().replace("a", "b"))
    assert spec.identity() != before


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b"])
def test_the_database_lies_in_its_folder_whatever_that_is_called(shared, tmp_path, name):
    spec = SweepSpec.from_dict(values(shared, tmp_path / name))
    if sqlalchemy.__version__ < "2.1" and name != "a#b":
        with pytest.raises(BakeoffError, match="a database's address cannot hold this name"):
            sweep._study(spec, None)
    else:
        sweep._study(spec, None)
        assert (tmp_path / name / sweep.DATABASE).is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_busy_database_is_one_line(shared, tmp_path, monkeypatch):
    spec = SweepSpec.from_dict(values(shared, tmp_path / "sweep"))
    monkeypatch.setattr(sweep, "_BUSY", 0.1)
    study = sweep._study(spec, None)
    monkeypatch.setattr(sweep, "_study", lambda *given: study)
    with sqlite3.connect(tmp_path / "sweep" / sweep.DATABASE, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(
            BakeoffError, match=r"the sweep's database failed \(.*locked.*start the sweep again"
        ):
            list(sweep.run(spec, progress=False))
