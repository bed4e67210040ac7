"""Attention transfer: what it fits, what it leaves alone, and what the record says of it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tiny
from bakeoff import checkpoints, encode, recipes, runs, tasks, train, transfer
from bakeoff.attention import ATTENTIONS
from bakeoff.errors import BakeoffError
from bakeoff.recipes import Recipe

LEARNS = {"performer": "performer:num_features=32", "linformer": "linformer:projected_length=4"}
RECIPE = Recipe(description="short", transfer_steps=24, transfer_tokens=64, transfer_learning_rate=0.1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def prepared(shared, attention, **changes):
    spec = tiny.spec(shared, attention=attention, **changes)
    tokenizer = checkpoints.load_tokenizer(spec.model_name_or_path)
    model = checkpoints.load(
        spec.model_name_or_path, spec.attention.name, attention_options=spec.attention.options
    )
    return model, tokenizer, encode.encode(tasks.load(spec).train, tokenizer, 64).dataset


def fit(shared, tmp_path, attention, recipe=RECIPE, seed=0):
    model, tokenizer, dataset = prepared(shared, attention)
    return model, transfer.transfer(model, tokenizer, dataset, recipe, tmp_path / "none", seed=seed)


@pytest.mark.parametrize("name", sorted(LEARNS))
def test_the_mechanism_comes_closer_to_dense_and_nothing_else_moves(shared, tmp_path, name):
    before, _, _ = prepared(shared, LEARNS[name])
    model, done = fit(shared, tmp_path, LEARNS[name])
    errors = [line["error"] for line in done.history]
    assert sum(errors[-5:]) < 0.9 * sum(errors[:5])
    old, moved = before.state_dict(), set()
    assert model.state_dict().keys() == old.keys()
    for key, value in model.state_dict().items():
        if not torch.equal(value, old[key]):
            moved.add(key)
    own = {id(p) for mechanism in model.mechanisms() for p in mechanism.transferable()}
    assert moved == {key for key, p in model.named_parameters() if id(p) in own}
    assert moved
    assert not list((tmp_path / "none").rglob("*"))
    assert all(p.requires_grad and p.grad is None for p in model.parameters() if id(p) not in own)
    assert [type(mechanism) for mechanism in model.mechanisms()] == [ATTENTIONS[name]] * 3


def test_the_error_is_that_of_the_layers_outputs(shared, tmp_path):
    """One step at a rate of nearly nothing reports the error that the model has."""
    recipe = Recipe(description="one", transfer_steps=1, transfer_tokens=10_000, transfer_learning_rate=1e-9)
    model, done = fit(shared, tmp_path, LEARNS["performer"], recipe)
    dense, tokenizer, dataset = prepared(shared, "dense")
    columns = [c for c in ("input_ids", "token_type_ids") if c in dataset.column_names]
    batch = tokenizer.pad(dataset.select_columns(columns)[:], return_tensors="pt")
    squares = []
    for ours, theirs in zip(model.mechanisms(), dense.mechanisms(), strict=True):

        def compare(module, args, kwargs, out, ours=ours):
            squares[-1][0] += (ours(*args, **kwargs) - out).square().sum()
            squares[-1][1] += out.square().sum()

        theirs.register_forward_pre_hook(lambda *_: squares.append([0.0, 0.0]))
        theirs.register_forward_hook(compare, with_kwargs=True)
    with torch.no_grad():
        dense.eval()(**batch)
    wanted = sum(error / size for error, size in squares) / len(squares)
    assert done.rows == 256
    assert done.history[0]["error"] == pytest.approx(wanted.item(), rel=1e-3)


@pytest.mark.parametrize("name", sorted(ATTENTIONS.keys() - LEARNS.keys()))
def test_nothing_to_fit_is_no_stage(shared, tmp_path, name):
    assert fit(shared, tmp_path, name)[1] is None


def test_texts_that_a_mechanism_covers_are_left_out(shared, tmp_path):
    _, _, dataset = prepared(shared, "linformer")
    lengths = sorted(dataset["length"])
    K = lengths[200]
    _, done = fit(shared, tmp_path, f"linformer:projected_length={K}")
    assert done.rows == sum(n > K for n in lengths)  # one pass over those, and no step more
    assert fit(shared, tmp_path, f"linformer:projected_length={lengths[-1]}")[1] is None


def test_the_same_seed_gives_the_same_state(shared, tmp_path):
    states = [fit(shared, tmp_path, LEARNS["performer"], seed=seed)[0].state_dict() for seed in (3, 3, 4)]
    key = next(key for key in states[0] if "key_projection" in key)
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], states[2][key])


def test_a_run_says_what_its_recipe_did_and_counts_its_time(shared):
    spec = tiny.spec(shared, attention=LEARNS["performer"], num_train_epochs=1)
    record = train.run(spec, progress=False)
    assert record.status == "ok", record.error
    assert record.spec["recipe"] == "transfer"
    assert 0 < record.transfer.seconds < record.cost.train_seconds
    assert runs.load(Path(spec.output_dir) / record.id) == record
    plain = train.run(tiny.spec(shared, attention=LEARNS["performer"], recipe="plain", num_train_epochs=1))
    assert plain.transfer is None
    assert plain.id != record.id


def test_an_unknown_recipe_is_one_line(shared):
    with pytest.raises(BakeoffError, match=r"unknown recipe 'tranfer'\. Did you mean 'transfer'"):
        train.resolve(tiny.spec(shared, recipe="tranfer"))
    assert recipes.get("plain").transfer_steps == 0


def test_a_killed_run_resumes_behind_its_transfer(shared, tmp_path):
    """The account of a stage that is over survives; the resumed run equals an uninterrupted one."""
    changes = {"attention": LEARNS["performer"], "save_steps": 8, "num_train_epochs": 2}
    whole = train.run(tiny.spec(shared, **changes), progress=False)
    spec = tiny.spec(shared, **changes, output_dir=str(tmp_path))
    folder = tmp_path / spec.run_id()
    script = (
        "import json, os, signal, sys; sys.path.insert(0, 'tests')\n"
        "from bakeoff import train; from bakeoff.spec import RunSpec\n"
        "class Killed(train._Meter):\n"
        "    def on_save(self, *args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)\n"
        "Killed.__name__ = '_Meter'; train._Meter = Killed\n"
        "train.run(RunSpec.from_dict(json.loads(sys.argv[1])), progress=False)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, json.dumps(spec.to_dict())], capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    account = json.loads((folder / train.CHECKPOINTS / "transfer.json").read_text())
    record = train.run(spec, progress=False)
    assert record.status == "ok", record.error
    assert record.transfer.seconds == account["seconds"]
    assert record.transfer.history == whole.transfer.history
    assert record.metrics == whole.metrics
    assert [line["loss"] for line in record.history] == pytest.approx(
        [line["loss"] for line in whole.history]
    )
