"""Generated files for every reader: what was written is what is read, and anything else is a line.

`BAKEOFF_FUZZ=10000 pytest tests/test_fuzz.py` asks 10,000 of each reader; by default it is a few, the same at
every call. Inputs that failed once are in `corpus/READER`.
"""

import contextlib
import copy
import json
import os
import pickle
import resource
import signal
import time
from pathlib import Path

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fixture_runs
from bakeoff import runs
from bakeoff.errors import BakeoffError, unknown
from bakeoff.spec import AttentionSpec, RunSpec, load_yaml
from bakeoff.tasks import files
from bakeoff.training import fine_tuning
from fuzz import LABELS, LONGEST, MEMORY, READERS, SECONDS, TEXTS
from test_files import write

EXAMPLES = int(os.environ.get("BAKEOFF_FUZZ", "0"))
CORPUS = Path(__file__).with_name("corpus")
#: Readers that take milliseconds an input are asked less of by default.
SLOW = {
    "record",
    "predictions",
    "bench",
    "config",
    "family",
    "weights",
    "index",
    "model",
    "tokenizer",
    "tokenizer_config",
}

#: What breaks readers: of csv, JSON, YAML and parquet, of Unicode, and of numbers.
PIECES = [
    *b"\0 --- \xff \xc3 \xed\xa0\x80 \xef\xbb\xbf \xff\xfe \x85 \" \"\" ' , : { } [ ]".split(b" "),
    *b"&a *a <<: | ? # ~ \\ud800 null true .nan NaN Infinity 1e999 -1 0".split(b" "),
    *b"0x_ 1:60 2001-99-99 PAR1 \x7f\xff\xff\xff".split(b" "),
    b"\n", b"\r", b"\r\n", b"\t", b": ", b"- ", b"!!timestamp ", b"!!bool x", b"!!int ''", b"!!set ",
    b"!!python/object:os.system ", b"0001-01-01 00:00:00 +23:59", b"%YAML 9.9\n", b"...\n",
    "\x85\u2028\u2029".encode(), "\u202e\u2066".encode(), "👩‍🚀é".encode(),
    b"[" * 2000, b"9" * 30, b"9" * 5000, b"\xff" * 8, b"a" * 3000,
]  # fmt: skip
texts = st.text(max_size=12) | st.sampled_from(
    [*TEXTS, *LABELS, "", " ", "\u202e\u2066", "\ufeff", "é", "e\u0301"]
)
numbers = st.sampled_from(
    [0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.0, -0.5, 1e308, float("nan"), float("inf")]
)
scalars = (
    st.none() | st.booleans() | st.integers() | numbers | texts | st.sampled_from(["\ud800", "x" * 5000])
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


#: By the type of a value, others that get past a test of it.
KIN = {
    bool: st.booleans(),
    int: st.integers() | st.integers(-1, 100) | st.sampled_from([2**31, 2**63 - 1, 2**63, 10**400]),
    float: st.floats() | st.sampled_from([0.0, -0.5, 1.5, 1e-300, 1e308]),
    str: texts,
}


class Hang(BaseException):
    """Past every `except Exception`."""


@contextlib.contextmanager
def bounded():
    """Within `SECONDS` of the processor's time, whatever else runs, and `MEMORY` more of resident memory."""

    def stop(*_):
        raise Hang

    clock, peak, held = time.process_time(), _peak(), _resident()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 1)  # again, as Python ignores what a callback raises
    try:  # other programs on the machine are to survive the test
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + 4 * MEMORY, limits[1]))
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.process_time() - clock < SECONDS
    assert _peak() == peak or _peak() - held < MEMORY


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _address_space():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def searched(few):
    """Settings for so many examples; with `BAKEOFF_FUZZ`, so many and others every time."""
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def edited(draw, seeds):
    """A valid file with a few bytes changed, and perhaps its end cut off."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 8))] = draw(st.sampled_from(PIECES) | st.binary(max_size=4))
    end = draw(st.none() | st.integers(0, len(data)))
    return bytes(data[:end])


@st.composite
def grafted(draw, seeds):
    """A valid JSON document, some of whose values, at any depth, are others."""
    document = copy.deepcopy(draw(st.sampled_from(seeds)))
    places = list(_places(document))
    for _ in range(draw(st.integers(1, 3))):
        inside, key = draw(st.sampled_from(places))
        if draw(st.integers(0, 9)) or isinstance(inside, list):
            value = inside[key] if isinstance(inside, list) else inside.get(key)
            inside[key] = draw(KIN.get(type(value), trees) | trees)
        else:
            inside.pop(key, None)
    return json.dumps(document).encode()


def _places(document):
    for key in document if isinstance(document, dict) else range(len(document)):
        yield document, key
        if isinstance(document[key], dict | list):
            yield from _places(document[key])


def hostile(seeds):
    """Any bytes, near to valid ones more often than not."""
    kinds = [edited(seeds), edited(seeds), st.binary(max_size=200)]
    documents = []
    for seed in seeds:
        with contextlib.suppress(ValueError):
            documents.append(json.loads(seed))
    if documents:
        kinds += [grafted(documents)] * 4 + [trees.map(lambda tree: json.dumps(tree).encode())]
    return st.one_of(kinds)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """By reader: a folder for it, and its valid files."""
    made = {}

    def prepare(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, READERS[name].prepare(folder)
        return made[name]

    return prepare


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_read(prepared, name):
    folder, seeds = prepared(name)
    for seed in seeds:
        (folder / READERS[name].file).write_bytes(seed)
        READERS[name].read(folder)


@pytest.mark.parametrize("name", READERS)
def test_any_file_gives_a_result_or_a_line(prepared, name):
    folder, seeds = prepared(name)

    @searched(10 if name in SLOW else 100)
    @given(hostile(seeds))
    def holds(data):
        with bounded():
            READERS[name].holds(folder, data)

    holds()


@pytest.mark.parametrize(
    "path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_what_failed_once(prepared, path):
    reader = path.parent.name
    folder, _ = prepared(reader)
    with bounded():
        READERS[reader].holds(folder, path.read_bytes())


#: Any text but halves of surrogate pairs, which UTF-8 has not.
whole_texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20) | st.sampled_from(
    [*TEXTS, *LABELS]
)
rows = st.lists(st.tuples(whole_texts, whole_texts), min_size=1, max_size=6)


@pytest.mark.parametrize("suffix", files.READERS)
def test_texts_are_read_as_they_were_written(tmp_path, suffix):
    @searched(60)
    @given(rows, st.booleans())
    def holds(written, marked):
        path = write(tmp_path / f"a{suffix}", written)
        if marked and suffix != ".parquet":
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert list(files.rows(path, ("text", "label"))) == written
        assert [*zip(*files.read(path, ("label", "text")), strict=True)] == [row[::-1] for row in written]

    holds()


@searched(60)
@given(
    st.lists(
        st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,5})?", fullmatch=True),
        min_size=1,
    )
)
def test_numbers_of_json_stay_the_texts_they_are(tmp_path_factory, found):
    path = tmp_path_factory.getbasetemp() / "numbers.jsonl"
    path.write_text("".join(f'{{"text": "x", "label": {number}}}\n' for number in found))
    assert files.read(path, ("label",)) == [found]


@searched(40)
@given(whole_texts, whole_texts, st.floats(1e-9, 1e9), st.integers(0, 2**32 - 1))
def test_specs_and_records_are_read_as_they_were_written(tmp_path_factory, one, two, rate, seed):
    hypothesis.assume("\0" not in one + two)
    folder = tmp_path_factory.getbasetemp() / "written"
    folder.mkdir(exist_ok=True)
    columns = {"text_columns": (one,), "label_column": two}
    spec = RunSpec(train_file=one, eval_file=two, learning_rate=rate, seed=seed, **columns)
    for dump in (yaml.safe_dump, json.dumps):
        (folder / "run.yaml").write_text(dump(spec.to_dict()), encoding="utf-8")
        assert RunSpec.from_dict(load_yaml(folder / "run.yaml")) == spec
    split = runs.Split(
        rows=seed, rows_available=seed, token_quantiles={}, share_truncated=0.5, label_counts={two: seed}
    )
    data = runs.Data(
        task=one,
        source=two,
        fingerprint="",
        labels=(one, two),
        max_length=1,
        sampled=False,
        splits={one: split},
    )
    record = runs.RunRecord(
        id=one, status="failed", digest="", spec=spec.to_dict(), started=two, seconds=rate,
        environment={one: two}, error=two, data=data,
    )  # fmt: skip
    runs.write_json(folder / runs.RECORD, record.to_dict())
    assert runs.load(folder) == record
    predictions = runs.Predictions([seed], [0], [[rate, -rate]], [1], [two])
    predictions.save(folder)
    assert runs.Predictions.load(folder) == predictions


WORD = "x" * 2**20
ODD = {
    "NUL": "a\0b",
    "next line, line and paragraph separator": "a\x85b\u2028c\u2029d",
    "other separators": "a\x0bb\x0cc\x1cd\x1de\x1ef",
    "bidirectional controls": "\u202eabc\u202c \u2066def\u2069",
    "byte order mark inside": "a\ufeffb",
    "combining characters": "e\u0301" * 50 + "\u0300" * 50,
    "composed and decomposed": "é e\u0301",
    "emoji with joiners": "👩‍🚀 👨‍👩‍👧‍👦 🏳️‍🌈",
    "beyond the basic plane": "𝒳 𐍈 \U0010ffff",
    "no characters": "\ufffe\uffff\ufdd0",
    "a word of a megabyte": WORD,
    "quotation marks": '"""\'',
    "what spreadsheets compute": "=1+1",
    "spaces around": "  a  ",
}


@pytest.mark.parametrize("suffix", files.READERS)
@pytest.mark.parametrize("kind", ODD)
def test_odd_texts_and_labels(tmp_path, suffix, kind):
    path = write(tmp_path / f"a{suffix}", [(ODD[kind], "nan"), ("x", ODD[kind])])
    with bounded():
        assert list(files.rows(path, ("text", "label"))) == [(ODD[kind], "nan"), ("x", ODD[kind])]


def test_labels_of_mixed_types(tmp_path):
    """A file's numbers, truth values and texts are one column of labels; what is missing is None."""
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(f'{{"label": {label}}}\n' for label in ("1", "1.0", '"01"', "true", '"nan"', "null", "-0"))
    )
    assert files.read(path, ("label",)) == [["1", "1.0", "01", "true", "nan", None, "-0"]]
    for values, expected in (
        (pa.array([1, None, -1], pa.int8()), ["1", None, "-1"]),
        (pa.array([0.5, float("nan"), 1.0]), ["0.5", None, "1"]),
        (pa.array([True, None]), ["true", None]),
        (pa.array(["nan", "None", "", None]), ["nan", "None", "", None]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["b", "a", "b"]),
        (pa.nulls(2), [None, None]),
    ):
        pq.write_table(pa.table({"label": values}), tmp_path / "a.parquet")
        assert files.read(tmp_path / "a.parquet", ("label",)) == [expected]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_half_of_a_surrogate_pair_is_not_utf_8(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", [("HERE", "1")])
    path.write_bytes(path.read_bytes().replace(b"HERE", "\ud83d".encode(errors="surrogatepass")))
    with pytest.raises(BakeoffError, match=r"0xed in line [12] is not UTF-8"):
        files.read(path, ("text",))


def test_two_columns_of_one_name_in_every_kind(tmp_path):
    pq.write_table(
        pa.table([pa.array(["x"]), pa.array(["y"])], names=["text", "text"]), tmp_path / "a.parquet"
    )
    (tmp_path / "a.csv").write_text("text,text\nx,y\n")
    (tmp_path / "a.tsv").write_text("text\ttext\nx\ty\n")
    (tmp_path / "a.jsonl").write_text('{"text": "x", "text": "y"}\n')
    for suffix in files.READERS:
        with pytest.raises(BakeoffError, match=r"'text'|twice among text"):
            files.read(tmp_path / f"a{suffix}", ("text",))


def test_an_error_is_a_short_line_whatever_it_quotes():
    error = BakeoffError(f"a\n\x1b[2J\u202e\ud800 {WORD} the end")
    assert str(error).startswith("a\\n\\x1b[2J\\u202e\\ud800 xxx")
    assert str(error).endswith("the end")
    assert len(str(error)) <= LONGEST
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert len(str(unknown("column", WORD, [WORD + "y"] * 3000))) <= LONGEST


@pytest.mark.parametrize(
    "name", ["csv", "jsonl", "parquet", "run", "grid", "sweep", "record", "bench", "model", "tokenizer"]
)
def test_the_command_line_says_it_in_one_line(prepared, tmp_path, call, name):
    """Exit code 2 and a line on stderr, with a file that is broken in its middle."""
    folder, seeds = prepared(name)
    path = folder / READERS[name].file
    path.write_bytes(seeds[0][: len(seeds[0]) // 2] + b"\0[{\xff")
    columns = ("--text-column", "text", "--label-column", "label")
    commands = {
        "run": [["run", path], ["check", path]],
        "grid": [["grid", path]],
        "sweep": [["sweep", path]],
        "record": [["try", folder / "runs" / "changed"]],
        "bench": [["report", folder / "runs", "--bench", path, "--output-dir", tmp_path]],
        "model": [["predict", folder / "model", "a film"]],
        "tokenizer": [["predict", folder / "model", "a film"]],
    }
    own = [
        ["check", "--train", path, "--eval", path, *columns],
        ["predict", tmp_path, "--file", path, *columns[:2]],
    ]
    for command in commands.get(name, own):
        code, out, err = call(*command)
        assert (code, out) == (2, ""), (out, err)
        assert err.startswith("error: ")
        assert err.removesuffix("\n").isprintable(), err


def test_an_attention_of_a_megabyte_is_refused_at_once():
    with bounded(), pytest.raises(BakeoffError, match="write up to"):
        AttentionSpec.parse("longformer:" + "window=1," * 2**17)


def test_names_that_are_not_utf_8(tmp_path, call):
    """A folder may be called so and is shown with an escape; what goes into a record may not."""
    fixture_runs.write_run(tmp_path / "runs", "dense", rows=40)
    code, out, err = call("report", tmp_path / "runs", "--output-dir", tmp_path / "\udcff")
    assert (code, err) == (0, "")
    assert r"\udcff/report.html" in out
    columns = ("--text-column", "text", "--label-column", "label")
    code, out, err = call("check", "--train", tmp_path / "\udcff.csv", "--eval", "b.csv", *columns)
    assert (code, out) == (2, "")
    assert "train_file" in err
    assert "not UTF-8" in err


def test_a_checkpoint_of_another_step_is_none(tmp_path):
    """A damaged state would end the training where it stands, and the run with it."""
    for step, found in ((10, 10), (20, 20), (30, 300), (40, "40"), (50, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(
            json.dumps({"global_step": found})
        )
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
            (tmp_path / f"checkpoint-{step}" / name).touch()
    (tmp_path / "checkpoint-last").mkdir()
    (tmp_path / "checkpoint-last" / "trainer_state.json").write_text('{"global_step": 99}')
    assert fine_tuning.last_checkpoint(tmp_path) == tmp_path / "checkpoint-20"
