"""The page that puts a text to every run: what it answers, what it explains, and whom it refuses."""

import asyncio
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import httpx
import pytest
import torch
from starlette.testclient import TestClient

import encoders
import tiny
from bakeoff import checkpoints, playground
from bakeoff.attention import Layer, build
from bakeoff.attention.reference import REFERENCES
from bakeoff.attention.weights import weights
from bakeoff.errors import BakeoffError
from bakeoff.playground import explain, server
from bakeoff.predict import Classifier
from bakeoff.training import train

TEXT = "a great film with some awful scenes in the rain"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained run, one that kept no model, and the other mechanisms untrained."""
    path = tmp_path_factory.mktemp("try")
    train.run(tiny.spec(path))
    train.run(tiny.spec(path, attention="performer", num_train_epochs=0.1, save_model=False))
    for name in encoders.SMALL.keys() - {"dense"}:
        checkpoints.convert(
            path / "encoder", name, path / "models" / name, attention_options=encoders.SMALL[name]
        )
    return path


@pytest.fixture(scope="module")
def candidates(folder):
    return playground.load([folder / "runs", *sorted((folder / "models").iterdir())])


@pytest.fixture(scope="module")
def client(candidates):
    return TestClient(server.app(candidates), "http://127.0.0.1:8765", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def classifiers(candidates):
    return {c.classifier.model.config.attention: c.classifier for c in candidates if c.classifier}


def test_runs_are_listed_and_those_without_a_model_say_why(client):
    runs = client.get("/runs").json()
    assert [run["name"] for run in runs] == ["dense", "performer", *sorted(encoders.SMALL.keys() - {"dense"})]
    assert [run["fault"] is None for run in runs] == [True, False, True, True, True, True]
    assert "--save-model" in runs[1]["fault"]
    assert (runs[0]["texts"], runs[0]["labels"], runs[0]["layers"]) == (1, ["neg", "pos"], 3)
    assert runs[2]["texts"] is None


def test_labels_are_the_classifier_s(client, candidates):
    for index, candidate in enumerate(candidates):
        if candidate.classifier is None:
            continue
        answer = client.post("/classify", json={"run": index, "texts": [TEXT]}).json()
        (expected,) = candidate.classifier([TEXT])
        assert (answer["label"], answer["probabilities"]) == (expected.label, expected.probabilities)
        assert (answer["tokens"], answer["truncated"]) == (12, False)
        assert answer["milliseconds"] > 0


def test_tasks_of_pairs_want_two_texts_and_damaged_records_are_said(folder, tmp_path):
    (run,) = [path for path in (folder / "runs").iterdir() if (path / "model").is_dir()]
    shutil.copytree(run, tmp_path / "pairs")
    record = json.loads((run / "run.json").read_text())
    record["spec"]["text_columns"] = ["text", "more"]
    (tmp_path / "pairs" / "run.json").write_text(json.dumps(record))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    damaged, pairs = playground.load([tmp_path])
    assert "not a run record" in damaged.fault
    assert pairs.texts == 2
    client = TestClient(server.app([pairs]), "http://127.0.0.1")
    refused(client.post("/classify", json={"run": 0, "texts": [TEXT]}), 400, "a task of two texts")
    answer = client.post("/classify", json={"run": 0, "texts": ["a film", "the rain"]}).json()
    assert answer["tokens"] == 7


@pytest.mark.parametrize("name", encoders.SMALL)
def test_attributions_are_the_gradient_along_the_way_and_add_up(classifiers, name):
    """The midpoint's share of one token, by finite differences; and completeness."""
    classifier, text = classifiers[name], (TEXT,)
    found = explain.attribute(classifier, text)
    assert len(found.values) == len(found.tokens) == 12
    assert [t.text for t in found.tokens if not t.special] == TEXT.split()
    assert [value for value, t in zip(found.values, found.tokens, strict=True) if t.special] == [0, 0]
    assert abs(found.gap) < 0.02 * max(map(abs, found.values))
    assert sum(found.values) == pytest.approx(found.total + found.gap, abs=1e-4)

    model = classifier.model.double()
    try:
        one = explain.attribute(classifier, text, steps=1)
        embed = model.get_input_embeddings()
        ids = torch.tensor(classifier.encode([text])[0]["input_ids"])
        end = embed(ids)
        start = embed(torch.zeros_like(ids)).where((torch.arange(12) % 11 > 0)[:, None], end)
        label = model.config.label2id[found.label]

        def log_odds(share):
            points = (start + end) / 2
            points[0, 2] = torch.lerp(start[0, 2], end[0, 2], share)
            logits = model(inputs_embeds=points, token_type_ids=torch.zeros_like(ids)).logits[0]
            return float(logits[label] - logits[1 - label])

        slope = (log_odds(0.5 + 1e-3) - log_odds(0.5 - 1e-3)) / 2e-3
    finally:
        model.float()
    assert one.values[2] == pytest.approx(slope, rel=1e-4, abs=1e-6)


UNPROJECTED = ("linformer", {"projected_length": 6, "global_tokens": 0})  # projects keys and values itself


@pytest.mark.parametrize("options", [*encoders.SMALL.items(), UNPROJECTED], ids=str)
@pytest.mark.parametrize("n", [5, 19])
def test_patterns_are_the_reference_s_weights(options, n):
    """`weights @ v` of the reference for values that are the identity, wider than any head."""
    name, options = options
    torch.manual_seed(0)
    mechanism = build(name, Layer(1, 2, 2, 8, 16, 40), options).double()
    with torch.no_grad():
        for parameter in mechanism.parameters():
            parameter.normal_()
    hidden = torch.randn(1, n, 16, dtype=torch.double)
    project = torch.nn.Linear(16, 16).double()
    q, k = (torch.randn(1, 2, n, 8, dtype=torch.double) for _ in range(2))
    given = {"hidden_BNE": hidden} if "hidden_BNE" in mechanism.layer_inputs else {}
    later = {}
    if mechanism.projects_later(n):
        later = {"key": project, "value": project}
        k = project(hidden).unflatten(-1, (2, 8)).transpose(1, 2)
    found = weights(mechanism, q, q if later else k, scaling=0.3, **given, **later)
    v = torch.randn(1, 2, n, 8, dtype=torch.double)
    expected = REFERENCES[name](mechanism, q, k, v, torch.ones(1, n, dtype=torch.bool), 0.3, **given)
    mixed = found @ v[0]
    if name == "longformer":  # whose two global rows have values of their own
        own = mechanism.value_global(hidden).unflatten(-1, (2, 8)).transpose(1, 2)
        mixed[:, :2] = (found @ own[0])[:, :2]
    torch.testing.assert_close(mixed, expected[0], rtol=1e-9, atol=1e-9)
    if name != "linformer":  # whose learned projections may sum to anything
        torch.testing.assert_close(found.sum(-1), torch.ones(2, n, dtype=torch.double))


def test_a_pattern_is_that_of_the_layer_in_the_model(client, candidates, classifiers):
    """Mixing the values with it gives what the layer's mechanism gave."""
    for name, classifier in classifiers.items():
        kept = []
        mechanism = classifier.model.mechanisms()[1]
        hook = mechanism.register_forward_hook(lambda m, args, out, kept=kept: kept.append((args, out)))
        found, tokens = explain.pattern(classifier, (TEXT,), 1)
        hook.remove()
        assert [token.text for token in tokens][1:-1] == TEXT.split()
        (_, _, v, *_), out = kept[0]
        if name == "dense":
            torch.testing.assert_close(found.sum(1), torch.ones(12))
            by_head = weights(mechanism, *kept[0][0][:2], scaling=8**-0.5)
            torch.testing.assert_close(by_head.mean(0), found)
            torch.testing.assert_close(by_head @ v[0], out[0])
        index = [c.classifier for c in candidates].index(classifier)
        answer = client.post("/pattern", json={"run": index, "texts": [TEXT], "layer": 1}).json()
        torch.testing.assert_close(torch.tensor(answer["weights"]), found, rtol=1e-3, atol=1e-6)
        refused(client.post("/pattern", json={"run": index, "texts": [TEXT], "layer": 3}), 400, "layer 3")
        refused(client.post("/pattern", json={"run": index, "texts": [TEXT], "layer": "1"}), 400, "layer")


def test_long_texts_are_labelled_and_not_explained(client):
    values = {"run": 0, "texts": ["rain " * 3000], "layer": 0}
    answer = client.post("/classify", json=values).json()
    assert (answer["tokens"], answer["truncated"]) == (3002, True)
    for path in ("/attribute", "/pattern"):
        refused(client.post(path, json=values), 400, "up to 256 tokens")


def test_text_stays_what_it_is(client, folder):
    for text in ("🙂 film 文字", "a\0film", "<script>alert(1)</script>", "film\u2028rain", "[CLS] [SEP]"):
        answer = client.post("/attribute", json={"run": 0, "texts": [text]})
        assert answer.status_code == 200, answer.text
        assert "".join(t["before"] + t["text"] for t in answer.json()["tokens"][1:-1]) in text
    found = explain.attribute(Classifier(folder / "models" / "bigbird"), ("a film", "the rain"))
    assert [t.text for t in found.tokens if t.special] == ["[CLS]", "[SEP]", "[SEP]"]
    refused(client.post("/classify", json={"run": 0, "texts": [TEXT, TEXT]}), 400, "a task of one text")


def refused(answer, status, *said):
    assert answer.status_code == status, answer.text
    message = answer.json()["error"]
    assert "Traceback" not in message
    for part in said:
        assert part in message


JSON = {"content-type": "application/json"}
FAULTS = {
    "no JSON": (b"{", 400, "no JSON"),
    "no object": (b"[]", 400, "JSON object"),
    "not UTF-8": (b'{"run": 0, "texts": ["\xff"]}', 400, "no JSON"),
    "UTF-16": ('{"run": 0, "texts": ["a"]}'.encode("utf-16"), 400, "no JSON"),
    "deep": (b"[" * 100_000, 400, "no JSON"),
    "a number of many digits": (b'{"run": ' + b"9" * 10_000 + b"}", 400, "no JSON"),
    "half of a character": (b'{"run": 0, "texts": ["\\ud800"]}', 400, "half of a character"),
    "no texts": (b'{"run": 0}', 400, "one or two texts"),
    "three texts": (b'{"run": 0, "texts": ["a", "b", "c"]}', 400, "one or two texts"),
    "a text that is none": (b'{"run": 0, "texts": [1]}', 400, "one or two texts"),
    "an empty text": (b'{"run": 0, "texts": [" \\n"]}', 400, "empty"),
    "no such run": (b'{"run": 99, "texts": ["a"]}', 400, "from 0 to 5"),
    "a negative run": (b'{"run": -1, "texts": ["a"]}', 400, "from 0 to 5"),
    "a run that is no number": (b'{"run": true, "texts": ["a"]}', 400, "from 0 to 5"),
    "a run without a model": (b'{"run": 1, "texts": ["a"]}', 400, "--save-model"),
    "too large": (b'{"run": 0, "texts": ["' + b"a" * server.MOST_BYTES + b'"]}', 413, "256 KiB"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_message(client, fault):
    content, status, said = FAULTS[fault]
    refused(client.post("/classify", content=content, headers=JSON), status, said)


def test_other_sites_are_refused(client):
    good = {"content": b'{"run": 0, "texts": ["a film"]}'}
    assert client.post("/classify", **good, headers=JSON).status_code == 200
    own = JSON | {"origin": "http://127.0.0.1:8765"}
    assert client.post("/classify", **good, headers=own).status_code == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", "https://127.0.0.1:8765"):
        refused(client.post("/classify", **good, headers=JSON | {"origin": origin}), 403, "the page itself")
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        refused(client.post("/classify", **good, headers={"content-type": kind}), 415, "application/json")
    for path in ("/", "/runs"):
        assert client.get(path, headers={"host": "evil.example"}).status_code == 400
    assert client.post("/classify", **good, headers=JSON | {"host": "evil.example:8765"}).status_code == 400
    refused(client.get("/classify"), 405)
    refused(client.get("/../pyproject.toml"), 404)


def test_every_answer_keeps_others_out_and_the_page_needs_no_one(client):
    for answer in (client.get("/"), client.get("/runs"), client.get("/none"), client.post("/classify")):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
    page, script = client.get("/").text, client.get("/page.js").text
    assert not re.findall(r"https?://", page + script + client.get("/page.css").text)
    assert not re.findall(r"\son\w+=|style=|<script>", page)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_what_fails_inside_is_an_answer_too(client, monkeypatch):
    monkeypatch.setattr(explain, "attribute", lambda *_: 1 / 0)
    refused(client.post("/attribute", json={"run": 0, "texts": ["a"]}), 500, "ZeroDivisionError")


def test_one_at_a_time_and_the_queue_has_an_end(candidates, client, monkeypatch):
    monkeypatch.setattr(server, "MOST_WAITING", 3)
    at_once, most, release = [], [], threading.Event()

    def classify(*_):
        at_once.append(1)
        most.append(len(at_once))
        release.wait(20)
        at_once.pop()
        return {}

    monkeypatch.setattr(server, "_classify", classify)

    async def all_of_them():
        transport = httpx.ASGITransport(server.app(candidates))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as many:
            asked = [many.post("/classify", json={"run": 0, "texts": ["a"]}) for _ in range(5)]
            answers = asyncio.as_completed(map(asyncio.create_task, asked))
            sent_away = [await next(answers), await next(answers)]
            release.set()
            return sent_away, [await answer for answer in answers]

    sent_away, answered = asyncio.run(all_of_them())
    for answer in sent_away:
        refused(answer, 503, "waiting")
    assert [answer.status_code for answer in answered] == [200] * 3
    assert most == [1, 1, 1]


def one_line(answer, *said):
    code, stdout, stderr = answer
    assert (code, stdout) == (2, ""), stderr
    assert len(stderr.splitlines()) == 1, stderr
    for part in said:
        assert part in stderr


def test_bad_input_is_one_line(call, folder, tmp_path, monkeypatch):
    one_line(call("try", tmp_path / "none", "--port", 0), "no such folder")
    one_line(call("try", tmp_path, "--port", 0), "bakeoff grid")
    one_line(call("try", folder / "encoder", "--port", 0), "none of 1 runs", "no bakeoff model")
    one_line(call("try", tmp_path, "--port", 70_000), "port 70000")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        one_line(call("try", folder / "runs", "--port", taken.getsockname()[1]), "cannot be had", "--port")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    one_line(call("try", folder / "runs"), "pip install '.[try]'")


def test_a_damaged_model_is_left_out_with_its_reason(folder, tmp_path):
    shutil.copytree(folder / "models" / "bigbird", tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"\0" * 100)
    damaged, whole = playground.load([tmp_path / "damaged", folder / "models" / "bigbird"])
    assert damaged.classifier is None
    assert "damaged: no model that transformers can read" in damaged.fault
    assert whole.fault is None
    with pytest.raises(BakeoffError, match="damaged"):
        playground.load([tmp_path / "damaged"])


def test_it_serves_until_ctrl_c(folder):
    command = [sys.executable, "-m", "bakeoff", "try", folder / "models" / "bigbird", "--port", "0"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = started.stdout.readline().split()[0]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
    with urllib.request.urlopen(address + "runs", timeout=30) as answer:
        assert [run["name"] for run in json.load(answer)] == ["bigbird"]
    os.kill(started.pid, signal.SIGINT)
    assert started.wait(20) == 0
    assert started.stderr.read() == ""
