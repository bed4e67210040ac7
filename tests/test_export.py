"""Exported runs: every mechanism as a graph for every length, the card, and what is refused."""

import builtins
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

import encoders
import tiny
from bakeoff import checkpoints, comparison, runs
from bakeoff.attention import longformer
from bakeoff.errors import BakeoffError
from bakeoff.export import TOLERANCE, card, export, graph
from fixture_runs import write_run

LONGEST = 80
HOSTILE = "--- [x](http://a) | `b` <script>: {{ c }}\n# d"

#: Family, mechanism, whether windows are computed as such at every length. Tracing is slow: no case twice.
OTHER = {"longformer": "roberta", "linformer": "distilbert"}
CASES = {name: (OTHER.get(name, "bert"), name, True, {}) for name in encoders.SMALL}
CASES["masked windows"] = ("bert", "longformer", False, {})
CASES["three blocks first"] = ("bert", "bigbird", True, {"global_tokens": 5})
CASES["all blocks first"] = ("bert", "bigbird", True, {"global_tokens": 1_000_000})


def make(root, family="bert", attention="dense", options=None, **fields):
    """A run folder as training leaves it, its weights random and spread enough to matter."""
    layers = {"n_layers" if family == "distilbert" else "num_hidden_layers": 1}
    positions = LONGEST + 2 if family == "roberta" else LONGEST
    types = {"type_vocab_size": 1} if family == "roberta" else {}
    base = tiny.encoder(root / "base", family, max_position_embeddings=positions, **layers, **types)
    labels = fields.pop("labels", ("bad", "good"))
    options = encoders.SMALL[attention] | (options or {})
    model = checkpoints.load(base, attention, attention_options=options, labels=labels)
    torch.manual_seed(1)
    with torch.no_grad():
        for mechanism in model.mechanisms():
            for parameter in mechanism.parameters():
                parameter.normal_(std=0.3)
    folder = write_run(root, attention, range(30), labels=labels, **fields)
    model.save_pretrained(folder / runs.MODEL)
    tokenizer = checkpoints.load_tokenizer(base)
    tokenizer.model_max_length = LONGEST
    tokenizer.save_pretrained(folder / runs.MODEL)
    if family in ("bert", "roberta"):  # as its own tokenizer has it, or as some have it for one type
        file = folder / runs.MODEL / "tokenizer_config.json"
        names = ["input_ids", "token_type_ids", "attention_mask"]
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_input_names": names}))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Each case's folder, traced once for both formats and exported by the command's own function."""
    kept = {}

    def get(case):
        if case not in kept:
            family, attention, windows, options = CASES[case]
            root = tmp_path_factory.mktemp("case")
            folder, programs = make(root, family, attention, options), []
            trace = graph.trace

            def once(inputs):
                programs.extend([] if programs else [trace(inputs)])
                return programs[0]

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(graph, "trace", once)
                if not windows:
                    patch.setattr(longformer, "DENSE_UP_TO", 512)
                exported = {
                    format: export(folder, format, root / format) for format in ("torch-export", "onnx")
                }
            kept[case] = SimpleNamespace(folder=folder, root=root, exported=exported)
        return kept[case]

    return get


def runners(root):
    """What others call: from the folders alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(root / "onnx" / "model.onnx")
    module = torch.export.load(root / "torch-export" / "model.pt2").module()
    yield lambda given: torch.from_numpy(session.run(None, {k: v.numpy() for k, v in given.items()})[0])
    yield lambda given: module(**given)


@pytest.mark.parametrize("case", CASES)
def test_a_graph_is_the_model_at_every_length_and_on_either_side(made, case):
    done = made(case)
    model = checkpoints.load(done.folder / runs.MODEL, CASES[case][1]).eval()
    inputs = graph.Inputs(model, checkpoints.load_tokenizer(done.folder / runs.MODEL))
    lengths = [(n,) for n in (*range(1, 14), 31, 32, 33, LONGEST)] + [(9, 1), (8, 5, 2, 8), (LONGEST, 40, 3)]
    seen = []
    for run in runners(done.root):
        for batch in lengths:
            given = inputs.batch(batch)
            wanted = inputs.logits(given)
            seen.append(wanted[0])
            torch.testing.assert_close(run(given), wanted, rtol=1e-4, atol=1e-4)
            left = inputs.batch(batch, "left")
            torch.testing.assert_close(run(left), wanted, rtol=1e-4, atol=1e-4)
    assert torch.stack(seen).std(0).min() > 100 * TOLERANCE  # the logits depend on the input
    assert all(exported.difference <= TOLERANCE for exported in done.exported.values())


def test_rows_of_a_batch_do_not_meet_and_pairs_count(made):
    done = made("dense")
    model = checkpoints.load(done.folder / runs.MODEL, "dense").eval()
    tokenizer = checkpoints.load_tokenizer(done.folder / runs.MODEL)
    pair = tokenizer(["good film", "bad"], ["rain", "a fine scenes"], padding=True, return_tensors="pt")
    alone = {name: x.clone() for name, x in pair.items()} | {"token_type_ids": pair["input_ids"] * 0}
    assert pair["token_type_ids"].any()
    for run in runners(done.root):
        given = {name: pair[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        with torch.no_grad():
            torch.testing.assert_close(run(given), model(**given).logits, rtol=1e-4, atol=1e-4)
        assert (run(given) - run(alone)).abs().max() > 100 * TOLERANCE


def test_a_folder_loads_as_its_card_says(made):
    """In a process of its own, without this library for the graphs."""
    done = made("performer")
    export(done.folder, "safetensors", done.root / "safetensors")
    for format in card.LOADING:
        text = (done.root / format / "README.md").read_text(encoding="utf-8")
        code = text.partition("```python\n")[2].partition("```")[0]
        assert ("import bakeoff" in code) == (format == "safetensors")
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=done.root / format, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip() in ("bad", "good")
    assert b"/tests/" not in (done.root / "onnx" / "model.onnx").read_bytes()  # nor any other path of here


def test_the_card_says_what_the_record_says(made):
    done = made("dense")
    record = runs.load(done.folder)
    text = (done.root / "onnx" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    (result,) = front["model-index"][0]["results"]
    assert {m["type"]: m["value"] for m in result["metrics"]} == {
        name: metric.value for name, metric in record.metrics.items()
    }
    row = comparison.compare(done.folder).groups[0].rows[0]
    accuracy = row.accuracy
    assert (
        f"| accuracy | {100 * accuracy.value:.2f} % "
        f"| {100 * accuracy.low:.2f} to {100 * accuracy.high:.2f} % |" in text
    )
    for part in (record.data.fingerprint, f"seed {record.spec['seed']}", f"{record.data.max_length} tokens"):
        assert part in text
    for speed in done.exported["onnx"].speed:
        assert f"| {speed.tokens} | {speed.what} | {speed.median:.2f} |" in text
        assert 0 < speed.low <= speed.median <= speed.high
    assert front["pipeline_tag"] == "text-classification"
    assert "license" not in front
    assert "base_model" not in front  # minilm is no id on the Hub


def test_hostile_names_stay_text(tmp_path):
    folder = write_run(tmp_path, "dense", labels=(HOSTILE, "b"), task=HOSTILE)
    card.write(
        tmp_path / "README.md", folder, "onnx",
        columns=1, difference=0.0, speed=[], note="", environment={"device": HOSTILE, "threads": 1},
    )  # fmt: skip
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["model-index"][0]["results"][0]["dataset"]["name"] == " ".join(
        HOSTILE.split()
    )
    for part in ("<script>", "[x](", "`b`", "\n# d"):
        assert part not in body
    assert "{{ c }}" in body  # as text: it was not rendered
    assert not re.search(r"(?<!\\)://", body)  # which Markdown makes a link of


def test_a_card_is_of_its_own_run_and_shows_as_many_texts_as_the_task_has(tmp_path):
    folder = make(tmp_path, "roberta", task="qnli")
    write_run(folder, "bigbird", range(60), folder="backup")
    export(folder, "safetensors", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "# qnli: dense" in card
    assert '["Its pair."]' in card


def test_what_is_refused_leaves_nothing(tmp_path, call, monkeypatch):
    folder, target = make(tmp_path), tmp_path / "out"
    command = ("export", folder, "--format", "safetensors", "--output", target)

    weights = graph.load_weights

    def altered(*args, **kwargs):
        model = weights(*args, **kwargs)
        with torch.no_grad():
            model.model.classifier.bias.add_(0.01)
        return model

    with monkeypatch.context() as patch:
        patch.setattr(graph, "load_weights", altered)
        code, _, error = call(*command)
    assert code == 2
    assert "logits differ" in error
    assert not target.exists()
    assert not list(tmp_path.glob("out*"))

    (tmp_path / "out.tmp").mkdir()
    code, _, error = call(*command)
    assert (code, len(error.splitlines())) == (2, 1)
    assert "out.tmp is in the way" in error
    (tmp_path / "out.tmp").rmdir()  # and was left alone
    (tmp_path / "file").write_text("")
    code, _, error = call(*command[:-1], tmp_path / "file" / "out")
    assert (code, len(error.splitlines())) == (2, 1)

    code, printed, error = call(*command)
    assert code == 0, error
    assert "eager" in printed
    code, _, error = call(*command)
    assert (code, error) == (2, f"error: {target} exists; choose another --output.\n")
    code, _, error = call("export", folder, "--format", "onx", "--output", tmp_path / "b")
    assert code == 2
    assert "Did you mean 'onnx'?" in error

    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("onnxruntime"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", missing)
        with pytest.raises(BakeoffError, match=r"pip install '\.\[export\]'"):
            export(folder, "onnx", tmp_path / "c")
    bare = write_run(tmp_path / "bare", "dense")
    with pytest.raises(BakeoffError, match="kept no model; move the folder away, and run it again"):
        export(bare, "onnx", tmp_path / "d")
    with pytest.raises(BakeoffError, match="holds no run"):
        export(tmp_path / "base", "onnx", tmp_path / "e")
    failed = write_run(tmp_path / "bad", "dense", status="failed", error="boom")
    with pytest.raises(BakeoffError, match="did not end well"):
        export(failed, "onnx", tmp_path / "f")
