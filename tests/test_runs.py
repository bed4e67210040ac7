"""Run records of every released schema: each loads, and says what it said."""

import json
from pathlib import Path

import pytest

from bakeoff import runs

RECORDS = Path(__file__).parent / "records"


def test_there_is_a_record_of_every_earlier_schema():
    assert {path.stem for path in RECORDS.iterdir()} == {f"schema-{n}" for n in range(1, runs.SCHEMA)}


@pytest.mark.parametrize("path", sorted(RECORDS.iterdir()), ids=lambda path: path.stem)
def test_an_earlier_record_loads_whole(path):
    written = json.loads(path.read_text(encoding="utf-8"))
    read = runs.RunRecord.from_dict(written)
    again = read.to_dict()
    assert {key: again[key] for key in written} == written
    assert all(not again[key] for key in again.keys() - written.keys())
    assert read.schema == written["schema"] < runs.SCHEMA
