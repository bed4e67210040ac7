"""Labels for files of any size: streamed, in order, and resumed where a call was interrupted."""

import csv
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import bakeoff
import fixture_runs
import tiny
from bakeoff import checkpoints, predict
from bakeoff.errors import BakeoffError
from bakeoff.tasks import files

ROWS = 700  # more than a window of batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("predict")
    for name, seed in (("model", 0), ("other", 1)):
        base = tiny.encoder(path / f"{name}-base", seed=seed)
        checkpoints.convert(base, "performer", path / name, attention_options={"num_features": 16})
    tiny.write(path / "texts.csv", tiny.texts(ROWS, 0, words=(1, 40)))
    return path


def label(call, folder, *more, model="model", file="texts.csv"):
    return call("predict", folder / model, "--file", folder / file, "--text-column", "text", *more)


@pytest.fixture(scope="module")
def whole(folder):
    """What an uninterrupted call writes."""
    output = folder / "whole.jsonl"
    assert predict.label_file(folder / "model", folder / "texts.csv", ["text"], output) == ROWS
    return output.read_bytes()


def test_lines_are_in_order_and_those_of_each_text_alone(call, folder, whole):
    code, stdout, stderr = label(call, folder)
    assert (code, stderr) == (0, "")
    assert stdout.encode() == whole
    lines = [json.loads(line) for line in stdout.splitlines()]
    classify = predict.Classifier(folder / "model")
    texts = [text for text, _ in tiny.texts(ROWS, 0, words=(1, 40))]
    for row in (0, 1, 511, 512, 699):  # both sides of the window's end
        (alone,) = classify([texts[row]])
        assert lines[row]["tokens"] == alone.tokens == len(texts[row].split()) + 2
        assert lines[row]["probabilities"] == pytest.approx(alone.probabilities, abs=1e-5)


@pytest.mark.parametrize("kept", [0, 1, 511, 512, 600, ROWS])
def test_an_interrupted_call_goes_on_to_the_same_bytes(folder, whole, tmp_path, kept):
    output = tmp_path / "labels.jsonl"
    shutil.copy(folder / "whole.jsonl.source.json", tmp_path / "labels.jsonl.source.json")
    lines = whole.splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:kept]) + b'{"label": "LAB' * (kept % 2))
    made = predict.label_file(folder / "model", folder / "texts.csv", ["text"], output)
    assert made == ROWS - kept
    assert output.read_bytes() == whole


def test_killed_it_goes_on_to_the_same_bytes(folder, tmp_path):
    tiny.write(tmp_path / "long.csv", tiny.texts(2_000, 3))
    output = tmp_path / "labels.jsonl"
    command = [
        *(sys.executable, "-m", "bakeoff", "predict", folder / "model", "--file", tmp_path / "long.csv"),
        *("--text-column", "text", "--output", output),
    ]
    started = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not output.exists() or output.stat().st_size < 1000:
        assert started.poll() is None, started.stderr.read()
        time.sleep(0.02)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    kept = output.read_bytes().count(b"\n")
    made = predict.label_file(folder / "model", tmp_path / "long.csv", ["text"], output)
    assert 0 < made < 2_000
    assert made + kept == 2_000
    again = tmp_path / "again.jsonl"
    predict.label_file(folder / "model", tmp_path / "long.csv", ["text"], again)
    assert output.read_bytes() == again.read_bytes()


def refused(answer, *said):
    code, stdout, stderr = answer
    assert (code, stdout) == (2, "")
    assert len(stderr.splitlines()) == 1
    for part in said:
        assert part in stderr


def test_another_model_or_other_texts_lose_nothing(call, folder, whole, tmp_path):
    output = tmp_path / "labels.jsonl"
    assert label(call, folder, "--output", output)[:2] == (0, f"{output}: {ROWS} rows labelled\n")
    assert label(call, folder, "--output", output)[:2] == (0, f"{output}: 0 rows labelled\n")
    refused(label(call, folder, "--output", output, model="other"), "another model", str(output))
    changed = tiny.texts(ROWS, 0, words=(1, 40))
    changed[-1] = ("another text", "pos")
    tiny.write(folder / "changed.csv", changed)
    refused(label(call, folder, "--output", output, file="changed.csv"), "other texts")
    assert output.read_bytes() == whole
    (tmp_path / "labels.jsonl.source.json").unlink()
    refused(label(call, folder, "--output", output), "labels.jsonl.source.json")
    assert output.read_bytes() == whole
    refused(label(call, folder, "--output", output / "labels.jsonl"), "cannot write")
    for name in (tmp_path, ".", ""):
        refused(label(call, folder, "--output", name), "is a folder")
    refused(label(call, folder, "--output", folder / "model" / "labels.jsonl"), "in the model's folder")
    refused(label(call, folder, "--output", tmp_path / "new" / "a", model="none"), "no such folder")
    assert not (tmp_path / "new").exists()
    refused(call("predict", folder / "model", "a text", "--output", output), "--file")
    refused(call("predict", folder / "model", "a text", "--text-column", "text"), "--file")


def test_a_file_that_changes_while_it_is_labelled_is_said(folder, tmp_path, monkeypatch):
    file, output = shutil.copy(folder / "texts.csv", tmp_path / "texts.csv"), tmp_path / "labels.jsonl"

    class Slow(predict.Classifier):
        def __init__(self, model):
            super().__init__(model)
            with file.open("a") as lines:
                lines.write("one more,pos\n")

    monkeypatch.setattr(predict, "Classifier", Slow)
    with pytest.raises(BakeoffError, match="changed while it was labelled"):
        predict.label_file(folder / "model", file, ["text"], output)
    with pytest.raises(BakeoffError, match="says of what it is"):
        predict.label_file(folder / "model", file, ["text"], output)


def test_texts_are_as_many_as_the_task_has(call, folder, tmp_path):
    columns = ["--file", folder / "texts.csv", *("--text-column", "text", "--text-column", "label")]
    refused(call("predict", folder / "model", *columns, "--text-column", "text"), "one text column or two")
    refused(call("predict", folder / "model", *columns[:4], "--text-column", "text"), "two different ones")
    run = fixture_runs.write_run(tmp_path, "performer", range(4), task="qnli")
    shutil.copytree(folder / "model", run / "model")
    refused(call("predict", run, "a text"), "a pair of texts an input, not 1")
    assert call("predict", run, *columns)[0] == 0
    with pytest.raises(BakeoffError, match="letter by letter; give a list"):
        list(predict.Classifier(folder / "model")("a text"))
    with pytest.raises(BakeoffError, match="one text or a pair an input, not 3"):
        list(predict.Classifier(folder / "model")([("a", "b", "c")]))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk without room is Linux's /dev/full")
def test_an_output_without_room_is_one_line(folder):
    command = [sys.executable, "-m", "bakeoff", "predict", folder / "model", "a text"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: the output cannot be written (No space left on device).\n",
    )


def test_two_at_once_do_not_mix(call, folder, tmp_path):
    output = tmp_path / "labels.jsonl"
    with predict.FileLock(tmp_path / ".labels.jsonl.lock"):
        refused(label(call, folder, "--output", output), "another process")
    assert not output.exists()


def test_a_fault_far_down_is_said_before_any_line(call, folder):
    rows = "".join(f"text {row}\n" for row in range(5_000))
    (folder / "faulty.csv").write_text(f"text\n{rows}one,two\n")
    refused(label(call, folder, file="faulty.csv"), "faulty.csv", "line 5002")


@pytest.mark.parametrize("suffix", files.READERS)
def test_files_are_read_a_part_at_a_time(tmp_path, suffix):
    """The first row comes before the last one is looked at: what lies there may be no row at all."""
    path, rows = tmp_path / f"a{suffix}", 60_000
    if suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = [f"{row:032}" for row in range(rows)]
        pq.write_table(pa.table({"text": texts}), path, row_group_size=1_000, use_dictionary=False)
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 50_000] = b"\xff" * 50_000
    else:
        line = '{"text": "word"}\n' if suffix == ".jsonl" else "word\n"
        content = bytearray(
            ("" if suffix == ".jsonl" else "text\n").encode() + line.encode() * rows + b"\xff\n"
        )
    path.write_bytes(content)
    found = files.rows(path, ["text"])
    assert len(list(itertools.islice(found, 1_000))) == 1_000
    with pytest.raises(bakeoff.BakeoffError, match=path.name):
        list(found)


def test_a_column_that_comes_late_in_jsonl_is_found(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "1"}\n{"a": "2"}\n{"a": "3", "b": "x"}\n{"b": "y"}\n')
    assert list(files.rows(path, ["b", "a"])) == [(None, "1"), (None, "2"), ("x", "3"), ("y", None)]


class Stdin(io.TextIOWrapper):
    """Bytes as a terminal or a pipe gives them, a part a read."""

    def __init__(self, *parts):
        super().__init__(io.BytesIO())
        self.parts = list(parts)

    @property
    def buffer(self):
        return self

    def read1(self, size):
        return self.parts.pop(0) if self.parts else b""


def test_stdin_is_answered_as_it_comes(call, folder, monkeypatch):
    parts = [b"a film\nthe r", b"ain\r\n", b"na\xc3", b"\xafve\nlast"]
    stdin = Stdin(*parts)
    monkeypatch.setattr(sys, "stdin", stdin)
    asked = []
    classify = predict.Classifier.__call__
    monkeypatch.setattr(
        predict.Classifier, "__call__", lambda self, texts: (asked.append(texts), classify(self, texts))[1]
    )
    code, stdout, stderr = call("predict", folder / "model", "-")
    assert code == 0, stderr
    assert asked == [["a film"], ["the rain"], [], ["naïve"], ["last"]]
    assert len(stdout.splitlines()) == 4


def test_stdin_that_is_no_text(call, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stdin(b"a film\n\xff\xfe\n"))
    refused(call("predict", folder / "model", "-"), "line 2 of stdin is not UTF-8")
    refused(call("predict", folder / "model", "half \udc80"), "half of a character")


def test_two_columns_and_quotes(call, folder, tmp_path):
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("a", "b"), ("a film", "the\nrain"), ("good", "")])
    command = ("predict", folder / "model", "--file", tmp_path / "pairs.csv")
    code, stdout, _ = call(*command, "--text-column", "a", "--text-column", "b")
    assert code == 0
    assert [json.loads(line)["tokens"] for line in stdout.splitlines()] == [7, 4]
