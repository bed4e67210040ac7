"""The user's own files: what is read as it stands, and the one line that each fault gives.

`BAKEOFF_LARGE=2 pytest -s tests/test_files.py -k bounded` reads files of 2 GB and prints what that took.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bakeoff import tasks
from bakeoff.errors import BakeoffError
from bakeoff.spec import RunSpec
from bakeoff.tasks import LoadedTask
from bakeoff.tasks.files import READERS

AWKWARD = [
    ("plain", "01"),
    ('says "no", twice', "1"),
    ("two\nlines", "1.0"),
    ("a C1 break\x85 and a separator\u2028 inside", "nan"),
    ("tab\there", "None"),
    ("naïve café – 文字 🙂", "null"),
]


def spec(train: Path, evaluation: Path | None = None, **fields: object) -> RunSpec:
    values = {"text_columns": ("text",), "label_column": "label", **fields}
    return RunSpec(train_file=str(train), eval_file=str(evaluation or train), **values)


def write(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("text", "label")) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({n: [r[i] for r in rows] for i, n in enumerate(header)}), path)
    elif path.suffix == ".jsonl":
        lines = (json.dumps(dict(zip(header, row, strict=True)), ensure_ascii=False) for row in rows)
        path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


def texts(loaded: LoadedTask) -> list[tuple[str, str]]:
    part = loaded.train
    return [(text, loaded.labels[label]) for (text,), label in zip(part.texts, part.labels, strict=True)]


def error(run: RunSpec) -> str:
    with pytest.raises(BakeoffError) as caught:
        tasks.load(run)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", READERS)
def test_texts_and_labels_stay_as_they_are(tmp_path: Path, suffix: str) -> None:
    loaded = tasks.load(spec(write(tmp_path / f"a{suffix}", AWKWARD)))
    assert texts(loaded) == AWKWARD
    assert loaded.labels == ("01", "1", "1.0", "None", "nan", "null")
    assert loaded.train.ids == list(range(len(AWKWARD)))
    assert loaded.train.rows_available == len(AWKWARD)
    assert not loaded.sampled
    assert loaded.name == "a"
    assert loaded.source == f"files a{suffix}, a{suffix}"


@pytest.mark.parametrize("suffix", READERS)
def test_two_texts(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", [("p", "x", "q"), ("r", "y", "s")], ("first", "label", "second"))
    loaded = tasks.load(spec(path, text_columns=("second", "first")))
    assert loaded.train.texts == [("q", "p"), ("s", "r")]


def test_the_parts_may_be_of_different_kinds(tmp_path: Path) -> None:
    kinds = [write(tmp_path / f"a{suffix}", [("x", "1"), ("y", "0")]) for suffix in READERS]
    kinds.append(tmp_path / "numbers.parquet")
    pq.write_table(pa.table({"text": ["x", "y"], "label": [1, 0]}), kinds[-1])
    kinds.append(tmp_path / "numbers.jsonl")
    kinds[-1].write_text('{"text": "x", "label": 1}\n\n{"text": "y", "label": 0}')
    for path in kinds:
        loaded = tasks.load(spec(kinds[0], path))
        assert (loaded.labels, loaded.eval.labels) == (("0", "1"), [1, 0])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["1.0", "01", "1"], ("01", "1", "1.0")),
        (["9" * 5000, "b"], ("9" * 5000, "b")),
        (["9" * 5000, "1"], ("1", "9" * 5000)),
    ],
)
def test_label_order(tmp_path: Path, found: list[str], expected: tuple[str, ...]) -> None:
    loaded = tasks.load(spec(write(tmp_path / "a.csv", [("x", label) for label in found])))
    assert loaded.labels == expected


def test_byte_order_mark_carriage_returns_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\r\n\r\none,a\r\ntwo,b\r\n\r\n")
    assert texts(tasks.load(spec(path))) == [("one", "a"), ("two", "b")]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one", "label": true}\r\n{"text": "two", "label": 1.0}\r\n')
    assert texts(tasks.load(spec(path))) == [("one", "true"), ("two", "1.0")]


def test_a_long_document_and_the_csv_module_left_as_it_was(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    text = "word " * 100_000
    loaded = tasks.load(spec(write(tmp_path / "a.csv", [(text, "a"), ("x", "b")])))
    assert loaded.train.texts[0] == (text,)
    assert csv.field_size_limit() == limit


def test_parquet_types_that_are_text_in_another_form(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    column = pa.array(["x", "y", "x"]).dictionary_encode()
    pq.write_table(pa.table({"text": pa.array(["a", "b", "c"], pa.large_string()), "label": column}), path)
    assert texts(tasks.load(spec(path))) == [("a", "x"), ("b", "y"), ("c", "x")]


def test_samples(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [(f"text {n}", "a" if n < 50 else "b") for n in range(100)])
    loaded = tasks.load(spec(path, max_train_samples=40))
    assert loaded.sampled
    assert (len(loaded.train.ids), loaded.train.rows_available, len(loaded.eval.ids)) == (40, 100, 100)
    assert loaded.train.texts == [(f"text {n}",) for n in loaded.train.ids]
    assert set(loaded.train.labels) == {0, 1}  # though the file is sorted by label
    assert tasks.load(spec(path, max_train_samples=40, seed=7)).train == loaded.train
    assert tasks.load(spec(path, max_train_samples=10)).train.ids == loaded.train.ids[:10]
    assert not tasks.load(spec(path, max_train_samples=100)).sampled


def content(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def folder(path: Path) -> Path:
    (path / "a.csv").mkdir()
    return path / "a.csv"


def table(**columns: pa.Array | list) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        pq.write_table(pa.table(columns), path / "a.parquet")
        return path / "a.parquet"

    return make


FAULTS = {
    "missing file": (lambda path: path / "none.csv", ["no such file", "none.csv"]),
    "folder": (folder, ["is not a file", ".jsonl"]),
    "name too long": (lambda path: path / ("x" * 5000 + ".csv"), ["cannot be read"]),
    "unsupported": (content("a.xlsx", b"x"), [".xlsx is not supported", ".csv"]),
    "no suffix": (content("a", b"x"), ["no suffix is not supported"]),
    "empty csv": (content("a.csv", b""), ["is empty"]),
    "empty parquet": (content("a.parquet", b""), ["is empty"]),
    "blank": (content("a.jsonl", b"\n \n"), ["is empty"]),
    "only a byte order mark": (content("a.csv", b"\xef\xbb\xbf"), ["is empty"]),
    "header only": (content("a.csv", b"text,label\n"), ["no rows"]),
    "no rows": (table(text=pa.array([], pa.string()), label=pa.array([], pa.string())), ["no rows"]),
    "missing column": (
        content("a.csv", b"texts,category\nx,a\n"),
        ["column 'text'", "Did you mean 'texts'", "category, texts"],
    ),
    "missing column, jsonl": (content("a.jsonl", b'{"text": "x", "kind": "a"}'), ["'label'", "kind, text"]),
    "missing column, parquet": (table(text=["x"], kind=["a"]), ["'label'", "kind, text"]),
    "double column": (content("a.csv", b"text,label,text\nx,a,y\n"), ["more than one", "'text'"]),
    "double name": (content("a.jsonl", b'{"text": "x", "text": "y", "label": "a"}'), ["line 1", "twice"]),
    "Latin-1": (
        content("a.csv", "text,label\nplain,a\nnaïve,b\n".encode("latin-1")),
        ["byte 0xef in line 3 is not UTF-8", "-f WINDOWS-1252"],
    ),
    "UTF-16": (content("a.tsv", "text\tlabel\n".encode("utf-16")), ["line 1 is not UTF-8", "-f UTF-16"]),
    "too many fields": (content("a.csv", b'text,label\n"x\ny",a\nx,y,a\n'), ["line 4 has 3", "has 2"]),
    "too few fields": (content("a.tsv", b"text\tlabel\nx\n"), ["line 2 has 1"]),
    "open quote": (content("a.csv", b'text,label\nx,a\n"y,b\nz,a\n'), ["begins in line 3", "double quote"]),
    "text after a quote": (content("a.tsv", b'text\tlabel\n"x" y\ta\n'), ["begins in line 2"]),
    "broken JSON": (content("a.jsonl", b'{"text": "x", "label": "a"}\n{"text": \n'), ["line 2", "JSON"]),
    "not an object": (content("a.jsonl", b'["x", "a"]\n'), ["line 1", "object"]),
    "JSON NaN": (content("a.jsonl", b'{"text": "x", "label": NaN}\n'), ["line 1", "NaN"]),
    "a list for a text": (content("a.jsonl", b'{"text": ["x"], "label": "a"}\n'), ["line 1", "'text'"]),
    "half a surrogate": (content("a.jsonl", b'{"text": "\\ud800", "label": "a"}\n'), ["line 1", "surrogate"]),
    "deep JSON": (content("a.jsonl", b'{"text": ' + b"[" * 100_000), ["line 1"]),
    "no parquet": (content("a.parquet", b"text,label\nx,a\n"), ["not readable as parquet"]),
    "parquet lists": (table(text=[["x"]], label=["a"]), ["column 'text'", "list"]),
    "parquet bytes": (table(text=pa.array([b"\xff"]), label=["a"]), ["column 'text'", "binary"]),
    "one class": (content("a.csv", b"text,label\nx,a\ny,a\n"), ["one class only", "'a'"]),
    "empty text": (
        content("a.csv", b"text,label\nx,a\n,b\n \xc2\x85,b\n"),
        ["'text'", "2 of 3 rows", "data row 2"],
    ),
    "null text": (content("a.jsonl", b'{"text": "x", "label": 1}\n{"label": 2}'), ["1 of 2", "data row 2"]),
    "null parquet text": (table(text=["x", None], label=["a", "b"]), ["1 of 2", "data row 2"]),
    "empty label": (content("a.csv", b"text,label\nx,\ny,b\n"), ["'label'", "1 of 2", "data row 1"]),
    "missing number": (table(text=["x", "y"], label=[1.0, float("nan")]), ["'label'", "data row 2"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path: Path, fault: str) -> None:
    make, expected = FAULTS[fault]
    path = make(tmp_path)
    message = error(spec(path))
    for part in (path.name[-100:], *expected):
        assert part in message


def test_faults_of_the_evaluation_file_name_it(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", [("x", "a"), ("y", "b")])
    assert "none.csv" in error(spec(train, tmp_path / "none.csv"))


@pytest.mark.parametrize("limit", [None, 1])
def test_labels_that_train_lacks(tmp_path: Path, limit: int | None) -> None:
    train = write(tmp_path / "train.csv", [("x", "a"), ("y", "b")])
    evaluation = write(tmp_path / "eval.csv", [("x", "a"), ("y", "A"), ("y", "b"), ("z", "c")])
    message = error(spec(train, evaluation, max_eval_samples=limit))
    assert "eval holds labels that train lacks: 'A', 'c'" in message
    assert "train has 'a', 'b'" in message


def test_classes_are_those_of_all_training_rows_where_some_are_held_out(tmp_path: Path) -> None:
    rows = [(f"x{row}", "ab"[row % 2]) for row in range(59)]
    train = write(tmp_path / "train.csv", [*rows, ("y", "rare")])
    for count in (1, 20, 59):
        loaded = tasks.load(spec(train, held_out_samples=count))
        assert loaded.labels == ("a", "b", "rare")
        assert len(loaded.eval.ids) == count
        assert sorted(loaded.train.ids + loaded.eval.ids) == [*range(60)]


def test_many_labels_are_not_all_listed(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", [("x", str(n)) for n in range(100)])
    evaluation = write(tmp_path / "eval.csv", [("x", str(n)) for n in range(100, 200)])
    message = error(spec(train, evaluation))
    assert "'109' …" in message
    assert "'110'" not in message


@pytest.mark.parametrize("columns", [("text", "text"), ("label",), ("text", "more", "most")])
def test_columns_that_make_no_task(tmp_path: Path, columns: tuple[str, ...]) -> None:
    path = write(tmp_path / "a.csv", [("x", "a"), ("y", "b")])
    assert "column" in error(spec(path, text_columns=columns))


LARGE = float(os.environ.get("BAKEOFF_LARGE", "0.1"))  # GB
READ = """
import sys, time
from pathlib import Path
import pyarrow.parquet
from bakeoff.tasks import files

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

before, clock = memory("VmRSS"), time.perf_counter()
rows = sum(1 for _ in files.rows(Path(sys.argv[1]), ("text", "label")))
print(rows, time.perf_counter() - clock, memory("VmHWM") - before)
"""


@pytest.mark.parametrize("suffix", READERS)
def test_a_file_of_any_size_is_read_in_bounded_memory(tmp_path: Path, suffix: str) -> None:
    block = [(f"{n} naïve 文字, " * 100, str(n % 2)) for n in range(10_000)]  # of about 20 MB
    part = write(tmp_path / f"part{suffix}", block)
    path = tmp_path / f"large{suffix}"
    if suffix == ".parquet":
        table = pq.read_table(part)
        with pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False) as file:
            table = pa.concat_tables([table] * 4)
            blocks = 0
            while path.stat().st_size < LARGE * 1e9:
                file.write_table(table, row_group_size=len(table))
                blocks += 4
    else:
        head, body = part.read_bytes().split(b"\n", 1) if suffix != ".jsonl" else (b"", part.read_bytes())
        blocks = round(LARGE * 1e9 / len(body)) + 1
        with path.open("wb") as file:
            file.write(head + b"\n")
            file.writelines(body for _ in range(blocks))
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, check=True)
    rows, seconds, megabytes = map(float, done.stdout.split())
    print(f"{suffix}: {path.stat().st_size:,} bytes, {rows:,.0f} rows, {seconds:.0f} s, {megabytes:.0f} MiB")
    path.unlink()
    assert rows == blocks * len(block)
    assert megabytes < 100
