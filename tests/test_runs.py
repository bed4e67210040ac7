"""Run records of every released schema: each loads, says what it said, and is compared."""

import json
from pathlib import Path

import pytest

from bakeoff import runs
from bakeoff.comparison import compare

RECORDS = Path(__file__).parent / "records"
PATHS = sorted(RECORDS.iterdir())


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
