"""The record store: what is written, what is read back, and the one line that each fault gives."""

import dataclasses
import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from bakeoff import runs
from bakeoff.comparison import compare
from bakeoff.errors import BakeoffError, BusyError
from bakeoff.spec import RunSpec
from fixture_runs import write_run

RECORDS = Path(__file__).parent / "records"
PATHS = sorted(RECORDS.iterdir())


@pytest.fixture
def spec(tmp_path):
    return RunSpec.from_dict(
        {"task": "sst2", "attention": "dense", "seed": 42, "output_dir": str(tmp_path / "out")}
    )


def refusal(function, *arguments):
    with pytest.raises(BakeoffError) as caught:
        function(*arguments)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_there_is_a_record_of_every_schema():
    assert {path.stem for path in PATHS} == {f"schema-{n}" for n in range(1, runs.SCHEMA + 1)}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_record_loads_whole(path):
    written = json.loads(path.read_text(encoding="utf-8"))
    read = runs.RunRecord.from_dict(written)
    again = read.to_dict()
    assert {key: again[key] for key in written} == written
    assert all(not again[key] for key in again.keys() - written.keys())
    assert f"schema-{read.schema}" == path.stem


def test_a_record_of_today_has_the_fields_of_its_schema():
    """A field that joins or leaves raises SCHEMA: readers of the JSON go by it."""
    written = json.loads((RECORDS / f"schema-{runs.SCHEMA}.json").read_text(encoding="utf-8"))
    assert runs.RunRecord.from_dict(written).to_dict() == written


def test_runs_of_every_schema_are_compared(tmp_path):
    """In one folder; predictions have had the same columns all along."""
    for path in PATHS:
        record = runs.RunRecord.from_dict(json.loads(path.read_text(encoding="utf-8")))
        folder, rows = tmp_path / path.stem, record.data.splits["eval"].rows
        folder.mkdir()
        folder.joinpath(runs.RECORD).write_bytes(path.read_bytes())
        answers = [i % 2 for i in range(rows)]
        logits, texts = [[1.0 - answer, answer] for answer in answers], ["a text"] * rows
        runs.Predictions(list(range(rows)), answers, logits, [9] * rows, texts).save(folder)
    compared = compare(tmp_path)
    seen = [run.record.schema for group in compared.groups for row in group.rows for run in row.runs]
    assert sorted(seen) == list(range(1, runs.SCHEMA + 1))


@pytest.mark.parametrize("schema", [None, "1", 0, runs.SCHEMA + 1])
def test_a_schema_that_is_not_known_is_refused(schema):
    assert refusal(runs.RunRecord.from_dict, {"schema": schema}) == (
        f"run record schema {schema!r} is unknown here (newest known: {runs.SCHEMA}); update bakeoff."
    )


def test_faults_say_which_field_of_what():
    assert refusal(runs.RunRecord.from_dict, {"schema": 1, "id": 3}) == "record.id has the wrong type: 3."
    assert refusal(runs.Transfer.from_dict, {"steps": None}) == "transfer.steps has the wrong type: None."
    transfer = runs.Transfer(steps=2, rows=16, seconds=0.5, history=({"step": 1.0, "error": 0.25},))
    assert runs.Transfer.from_dict(json.loads(json.dumps(dataclasses.asdict(transfer)))) == transfer


def test_a_file_is_written_as_people_and_other_programs_read_it(tmp_path):
    runs.write_json(tmp_path / "a.json", {"text": "naïve ✓", "of": [1]})
    assert (tmp_path / "a.json").read_bytes() == (
        '{\n  "text": "naïve ✓",\n  "of": [\n    1\n  ]\n}\n'.encode()
    )
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    """What is synced is everything, under the temporary name, while the old file stands."""
    path, synced = tmp_path / "a.json", []
    path.write_text("old")
    monkeypatch.setattr(
        os, "fsync", lambda _: synced.append((path.read_text(), (tmp_path / "a.json.tmp").read_text()))
    )
    runs.write_json(path, [])
    assert synced == [("old", "[]\n")]
    assert path.read_text() == "[]\n"


def test_a_file_that_breaks_off_leaves_the_old_one(tmp_path):
    runs.write_json(tmp_path / "a.json", "old")
    with pytest.raises(TypeError):
        runs.write_json(tmp_path / "a.json", {"no JSON": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == "old"


def test_what_cannot_be_written_says_why_and_what_to_do(tmp_path):
    path = tmp_path / "none" / "a.json"
    assert refusal(runs.write_json, path, 1) == (
        f"cannot write {path} (No such file or directory); make room there, or name another folder, and "
        "start again: what is finished is kept."
    )

    def fail():
        with runs.whole(path):
            raise OSError("no number")

    assert refusal(fail).startswith(f"cannot write {path} (no number); ")


def test_earlier_attempts_stay_beside_the_record(tmp_path):
    record = runs.load(write_run(tmp_path, "dense"))
    folder = tmp_path / "again"
    folder.mkdir()
    for error in ("first", "second", None):
        runs.save(folder, dataclasses.replace(record, error=error))
    kept = {path.name: json.loads(path.read_text())["error"] for path in folder.iterdir()}
    assert kept == {"run.1.json": "first", "run.2.json": "second", "run.json": None}
    assert runs.load(folder) == record
    (folder / "run.1.json").unlink()
    runs.save(folder, record)
    assert json.loads((folder / "run.2.json").read_text())["error"] == "second"


def test_a_record_holds_what_is_no_json_as_text(tmp_path):
    record = runs.load(write_run(tmp_path, "dense"))
    record = dataclasses.replace(record, environment={"python": Path("/usr/bin/python")})
    assert record.to_dict()["environment"] == {"python": "/usr/bin/python"}


def test_a_folder_without_a_record_and_one_that_is_not_readable(tmp_path):
    assert refusal(runs.load, tmp_path) == f"{tmp_path} holds no run (run.json is missing)."
    path = tmp_path / runs.RECORD
    for content, reason in (
        (b"{", "not a run record (Expecting property name"),
        (b'"\xff"', "not a run record ('utf-8' codec can't decode"),
        (b"[" * 100_000, "not a run record ("),
        (b"[]", "a record is a JSON object."),
        (b'{"schema": 9}', "run record schema 9 is unknown"),
    ):
        path.write_bytes(content)
        assert refusal(runs.load, tmp_path).startswith(f"{path}: {reason}")
    assert refusal(runs.load, tmp_path).endswith("update bakeoff.")
    path.write_text("{")
    assert refusal(runs.load, tmp_path).endswith("; move it away to run it again.")


def test_a_record_is_read_as_utf_8_whatever_the_locale_says(tmp_path, monkeypatch):
    """What has no encoding named is read and written as the locale says, which may be ASCII."""
    named = []
    for name in ("open", "read_text"):
        method = getattr(Path, name)
        monkeypatch.setattr(
            Path,
            name,
            lambda *args, of=method, **kwargs: named.append(kwargs.get("encoding")) or of(*args, **kwargs),
        )
    runs.write_json(tmp_path / runs.RECORD, [])
    refusal(runs.load, tmp_path)
    assert set(named) == {"utf-8"}


def test_only_a_whole_run_that_ended_well_is_finished(spec):
    root = Path(spec.output_dir)
    assert runs.finished(spec) is None
    folder = write_run(root, "dense", seed=42)
    assert folder.name == spec.run_id()
    record = runs.load(folder)
    assert runs.finished(spec) == record
    (folder / runs.PREDICTIONS).rename(folder / "elsewhere")
    assert runs.finished(spec) is None
    (folder / "elsewhere").rename(folder / runs.PREDICTIONS)
    runs.save(folder, dataclasses.replace(record, status="failed"))
    assert runs.finished(spec) is None
    runs.save(folder, dataclasses.replace(record, digest="0" * 64))
    assert refusal(runs.finished, spec) == f"{folder} holds another run; choose another --output-dir."


@pytest.mark.parametrize("at", [".", "deep/folder", "deep/file"])
def test_links_are_refused_wherever_they_stand(tmp_path, at):
    plain = tmp_path / "plain"
    (plain / "deep").mkdir(parents=True)
    (plain / "deep" / "a").touch()
    runs.refuse_links(plain, tmp_path / "none")
    link = tmp_path / "folder" / at
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(plain / "deep" / "a" if at == "deep/file" else plain)
    said = f"{link} is a symbolic link, through which a run would write elsewhere; remove it, or "
    assert refusal(runs.refuse_links, plain, tmp_path / "folder") == f"{said}choose another --output-dir."


def test_one_process_at_a_time_makes_a_run(tmp_path):
    said = f"^{re.escape(str(tmp_path))} is being made by another process"
    with runs.lock(tmp_path), pytest.raises(BusyError, match=said), runs.lock(tmp_path):
        pass
    with runs.lock(tmp_path):
        pass


def test_runs_are_found_by_name_and_unreadable_ones_as_their_error(tmp_path):
    for name in ("b", "c", "a"):
        write_run(tmp_path, "dense", folder=f"deep/{name}")
    (tmp_path / "deep" / "b" / runs.RECORD).write_text("{")
    (tmp_path / "empty").mkdir()
    (a, first), (b, error), (c, last) = runs.find(tmp_path)
    assert [path.relative_to(tmp_path / "deep").name for path in (a, b, c)] == ["a", "b", "c"]
    assert first == last == runs.load(a)
    assert str(error).startswith(f"{b / runs.RECORD}: not a run record")
    assert [path for path, _ in runs.find(a)] == [a]
    none = tmp_path / "none"
    assert refusal(lambda: list(runs.find(none))) == f"no such folder: {none}."


def test_links_are_followed_to_runs_once_and_what_cannot_be_listed_is_said(tmp_path, monkeypatch):
    write_run(tmp_path / "elsewhere", "dense", folder="x")
    root = tmp_path / "runs"
    write_run(root, "dense", folder="own")
    for name in ("linked", "linked-too"):
        (root / name).symlink_to(tmp_path / "elsewhere")
    (root / "own" / "again").symlink_to(root)
    (root / "latest").symlink_to(root / "own")
    assert [path for path, _ in runs.find(root)] == [root / "linked" / "x", root / "own"]
    (root / "shut").mkdir()
    listed = os.scandir

    def scandir(path):
        if Path(path).name == "shut":  # as for anyone but root with mode 0
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    *_, (path, error) = runs.find(root)
    assert path == root / "shut"
    assert str(error) == f"{path}: cannot be listed (Permission denied); mend that, or move it."


def test_the_folders_of_a_study(spec, tmp_path, monkeypatch):
    deep = dataclasses.replace(spec, output_dir=str(tmp_path / "deep" / "out"))
    assert runs.encoded_folder(deep) == tmp_path / "deep" / "out" / ".encoded"
    for _ in range(2):  # made, and there already
        assert runs.output_folder(deep) == tmp_path / "deep" / "out"
        assert (tmp_path / "deep" / "out").is_dir()
    asked = []
    monkeypatch.setattr(os, "access", lambda *of: asked.append(of))
    output = tmp_path / "deep" / "out"
    assert refusal(runs.output_folder, deep) == f"cannot write to {output}; choose another --output-dir."
    assert asked == [(output, os.W_OK)]
    (output / runs.RECORD).touch()
    assert refusal(runs.finished, deep) == (
        f"{output} holds a run itself; name the folder that holds it, or another."
    )
    inside = dataclasses.replace(spec, output_dir=str(output / runs.RECORD / "more"))
    assert refusal(runs.output_folder, inside) == (
        f"cannot make {output / runs.RECORD / 'more'} (Not a directory); choose another --output-dir."
    )


def test_predictions_come_back_as_they_were(tmp_path):
    predictions = runs.Predictions([3, 7], [0, 1], [[0.1, -2.0], [1e-9, 3.5]], [12, 4], ["naïve", ""])
    predictions.save(tmp_path)
    assert runs.Predictions.load(tmp_path) == predictions
    assert os.listdir(tmp_path) == [runs.PREDICTIONS]
    import pyarrow.parquet as pq

    column = pq.ParquetFile(tmp_path / runs.PREDICTIONS).metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"


def test_predictions_that_are_missing_or_not_readable(tmp_path):
    assert refusal(runs.Predictions.load, tmp_path) == (
        f"{tmp_path} holds no predictions.parquet; run it again to have it compared."
    )
    path = tmp_path / runs.PREDICTIONS
    path.write_bytes(b"no parquet")
    assert refusal(runs.Predictions.load, tmp_path).startswith(f"{path}: not readable as predictions (")


@dataclasses.dataclass
class Inner:
    size: float


@dataclasses.dataclass
class Outer:
    """A field of each kind that a record has."""

    inner: Inner
    kind: Literal["a", "b"] = "a"
    count: int | None = None
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    many: tuple[Inner, ...] = ()
    free: Any = None
    on: bool = False


def test_plain_values_become_what_is_asked_for():
    plain = {
        "inner": {"size": 2},
        "kind": "b",
        "count": 2**63 - 1,
        "shares": {"x": 1},
        "many": [{"size": 0.5}],
        "free": [1, {"a": None}],
        "on": True,
    }
    read = runs.from_plain(Outer, plain, "it")
    assert read == Outer(Inner(2.0), "b", 2**63 - 1, {"x": 1.0}, (Inner(0.5),), [1, {"a": None}], True)
    assert type(read.inner.size) is type(read.shares["x"]) is float
    assert runs.from_plain(Outer, {"inner": {"size": 1.0}, "count": None}, "it") == Outer(Inner(1.0))


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ([], "it must be an object."),
        ({}, "it lacks inner."),
        ({"inner": {"size": 1}, "zz": 1, "a": 2}, "it has unknown fields: a, zz."),
        ({"inner": {}}, "it.inner lacks size."),
        ({"inner": {"size": "1"}}, "it.inner.size has the wrong type: '1'."),
        ({"inner": {"size": True}}, "it.inner.size has the wrong type: True."),
        ({"inner": {"size": 10**400}}, "it.inner.size is too large a number."),
        ({"inner": {"size": 1}, "kind": "c"}, "it.kind must be one of a, b, not 'c'."),
        ({"inner": {"size": 1}, "count": 0.5}, "it.count has the wrong type: 0.5."),
        ({"inner": {"size": 1}, "count": 2**63}, "it.count is too large a number."),
        ({"inner": {"size": 1}, "count": -(2**63)}, "it.count is too large a number."),
        ({"inner": {"size": 1}, "shares": {"x": None}}, "it.shares.x has the wrong type: None."),
        ({"inner": {"size": 1}, "shares": [1]}, "it.shares has the wrong type: [1]."),
        ({"inner": {"size": 1}, "many": [{"size": None}]}, "it.many.size has the wrong type: None."),
        ({"inner": {"size": 1}, "many": {}}, "it.many has the wrong type: {}."),
    ],
)
def test_plain_values_that_are_something_else(plain, said):
    assert refusal(runs.from_plain, Outer, plain, "it") == said


def test_a_class_that_lacks_several_names_them():
    assert refusal(runs.from_plain, runs.Metric, {"higher_is_better": True}, "it") == "it lacks value."
    assert refusal(runs.from_plain, runs.Transfer, {"steps": 1}, "t") == "t lacks rows, seconds, history."
