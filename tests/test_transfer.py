"""Attention transfer: what it fits, what it leaves alone, and what the record says of it."""

import copy
import dataclasses
import functools
import json
import math
import signal
import subprocess
import sys

import pytest
import torch

import encoders
import tiny
from bakeoff import checkpoints, encode, recipes, runs, tasks
from bakeoff.attention import ATTENTIONS
from bakeoff.encoder import hooks
from bakeoff.errors import BakeoffError
from bakeoff.recipes import Recipe
from bakeoff.training import callbacks, fine_tuning, preparation, train, transfer

LEARNS = {
    "performer": "performer:num_features=32,global_tokens=2",
    "linformer": "linformer:projected_length=4,global_tokens=2",
}
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
    return model, transfer.fit(model, tokenizer, dataset, recipe, tmp_path / "none", seed=seed)


def error(model, inputs):
    with transfer.in_place(model, transfer._beside_dense):
        inputs = {name: x.to(model.device) for name, x in inputs.items()}  # fitted where there is a GPU
        return transfer._Stage(model)(**inputs)["loss"].item()


@pytest.mark.parametrize("name", sorted(LEARNS))
def test_the_mechanism_comes_closer_to_dense_and_nothing_else_moves(shared, tmp_path, name):
    before, tokenizer, dataset = prepared(shared, LEARNS[name])
    model, done = fit(shared, tmp_path, LEARNS[name])
    columns = [c for c in ("input_ids", "token_type_ids") if c in dataset.column_names]
    inputs = tokenizer.pad(dataset.select_columns(columns)[:], return_tensors="pt")
    assert error(model, inputs) < 0.95 * error(before, inputs)
    assert done.history[-1]["step"] == done.steps
    old, moved = before.state_dict(), set()
    assert model.state_dict().keys() == old.keys()
    for key, value in model.state_dict().items():
        if not torch.equal(value.cpu(), old[key]):
            moved.add(key)
    own = {id(p) for mechanism in model.mechanisms() for p in mechanism.transferable()}
    assert moved == {key for key, p in model.named_parameters() if id(p) in own}
    assert moved
    assert not list((tmp_path / "none").rglob("*"))
    assert all(p.requires_grad and p.grad is None for p in model.parameters() if id(p) not in own)
    assert [type(mechanism) for mechanism in model.mechanisms()] == [ATTENTIONS[name]] * 3


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("N", [20, 300])
@pytest.mark.parametrize("attention", sorted(LEARNS))
@pytest.mark.parametrize("family", ["bert", "albert", "eurobert", "modernbert"])
def test_the_error_is_that_of_the_layers_outputs(tmp_path, family, attention, N, side):
    """Shared layers, grouped keys, rotation, layers that stay local; packed, and row by row."""
    encoders.save(tmp_path, family, max_position_embeddings=512)
    options = encoders.SMALL[attention]
    model = checkpoints.load(tmp_path, attention, attention_options=options)
    dense = checkpoints.load(tmp_path, "dense")
    inputs = encoders.batch(B=3, N=N, side=side)
    inputs["attention_mask"][1, : N // 2] = 0
    if side == "right":
        inputs["attention_mask"][1] = inputs["attention_mask"][1].flip(0)
    squares = {}
    for index, (ours, theirs) in enumerate(zip(model.mechanisms(), dense.mechanisms(), strict=True)):
        if not ours.transferable():
            continue
        squares[index] = [0.0, 0.0]
        theirs.layer_inputs = ours.layer_inputs  # so that the bridge hands them over
        forward = theirs.forward

        def both(*args, index=index, ours=ours, forward=forward, **kwargs):
            hidden = {name: kwargs.pop(name) for name in ours.layer_inputs if name in kwargs}
            out = forward(*args, **kwargs)
            squares[index][0] += (ours(*args, **kwargs, **hidden) - out).square().sum().item()
            squares[index][1] += out.square().sum().item()
            return out

        theirs.forward = both
        if ours.layer_inputs:
            dense.model.get_submodule(model.sites[index].path).register_forward_pre_hook(
                functools.partial(hooks.hand_over_input, ()), with_kwargs=True
            )
    with torch.no_grad():
        dense.eval()(**inputs)
    wanted = sum(part / size for part, size in squares.values()) / len(squares)
    assert wanted > 1e-3
    assert error(model, inputs) == pytest.approx(wanted, rel=1e-4)
    assert {type(mechanism).__name__ for mechanism in model.mechanisms()} <= {
        "Performer",
        "Linformer",
        "Window",
    }


def test_the_encoder_drops_nothing_while_it_is_matched(tmp_path):
    encoders.save(tmp_path, "bert", hidden_dropout_prob=0.5)
    model = checkpoints.load(tmp_path, "performer", attention_options=encoders.SMALL["performer"])
    inputs = encoders.batch()
    assert error(model.train(), inputs) == error(model.train(), inputs)


def test_copies_of_the_stage_count_their_own_errors(shared):
    """On a machine with several GPUs each has a copy."""
    model, tokenizer, dataset = prepared(shared, LEARNS["performer"])
    inputs = tokenizer.pad(dataset.select_columns(["input_ids"])[:8], return_tensors="pt")
    with transfer.in_place(model, transfer._beside_dense):
        stage = transfer._Stage(model)
        original = [module for module in stage.modules() if isinstance(module, transfer._Beside)]
        replica = copy.deepcopy(stage)
        replica(**inputs)["loss"].backward()
        assert all(layer.squared_size == 0 for layer in original)
        assert all(p.grad is None for p in model.parameters())


def test_an_interrupted_stage_leaves_the_model_whole(shared, tmp_path, monkeypatch):
    model, tokenizer, dataset = prepared(shared, LEARNS["performer"])
    keys, calls = model.state_dict().keys(), []

    def interrupted(stage, **batch):
        calls.append(stage)
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer._Stage, "forward", lambda self, input_ids, attention_mask: interrupted(self))
    with pytest.raises(KeyboardInterrupt):
        transfer.fit(model, tokenizer, dataset, RECIPE, tmp_path, seed=0)
    assert calls
    assert model.state_dict().keys() == keys
    assert {type(mechanism).__name__ for mechanism in model.mechanisms()} == {"Performer"}


def test_a_run_interrupted_in_its_transfer_starts_anew(shared, tmp_path, monkeypatch):
    spec = tiny.spec(shared, attention=LEARNS["performer"], num_train_epochs=1, output_dir=str(tmp_path))
    fitted = transfer.fit

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.run(spec, progress=False)
    assert runs.load(tmp_path / spec.run_id()).status == "cancelled"
    monkeypatch.setattr(transfer, "fit", fitted)
    record = train.run(spec, progress=False)
    assert record.status == "ok", record.error
    assert record.transfer.steps > 0


def test_with_an_account_that_cannot_be_read_all_is_put_aside(shared, tmp_path, monkeypatch):
    spec = tiny.spec(
        shared, attention=LEARNS["performer"], num_train_epochs=2, save_steps=8, output_dir=str(tmp_path)
    )
    folder = tmp_path / spec.run_id() / train.CHECKPOINTS

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(callbacks.Meter, "on_save", interrupt, raising=False)
    with pytest.raises(KeyboardInterrupt):
        train.run(spec, progress=False)
    monkeypatch.undo()
    (folder / "converted" / "transfer.json").write_text("{")
    record = train.run(spec, progress=False)
    assert record.status == "failed"
    assert "checkpoints could not be resumed from" in record.error
    assert "is now unusable-checkpoints; run it again" in record.error
    assert (folder.with_name("unusable-checkpoints") / "checkpoint-8" / "model.safetensors").is_file()
    record = train.run(spec, progress=False)
    assert record.status == "ok", record.error
    assert not folder.with_name("unusable-checkpoints").exists()
    assert record.transfer.steps > 0


def test_divergence_is_an_error(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(
        transfer._Stage,
        "forward",
        lambda self, input_ids, attention_mask: {
            "loss": math.nan * sum(p.sum() for m in self.model.mechanisms() for p in m.mechanism.parameters())
        },
    )
    with pytest.raises(RuntimeError, match="attention transfer diverged"):
        fit(shared, tmp_path, LEARNS["performer"])


@pytest.mark.parametrize("name", sorted(ATTENTIONS.keys() - LEARNS.keys()))
def test_nothing_to_fit_is_no_stage(shared, tmp_path, name):
    assert fit(shared, tmp_path, name)[1] is None


@pytest.mark.parametrize("attention", LEARNS.values())
def test_state_that_was_trained_is_kept(shared, tmp_path, attention):
    """A run from a converted encoder fits its state; one from a run's own model would fit it away."""
    spec = tiny.spec(shared, attention=attention, num_train_epochs=1, output_dir=str(tmp_path / "runs"))
    chosen = spec.attention
    checkpoints.convert(
        spec.model_name_or_path, chosen.name, tmp_path / "converted", attention_options=chosen.options
    )
    fresh = train.run(
        dataclasses.replace(spec, model_name_or_path=str(tmp_path / "converted")), progress=False
    )
    assert fresh.transfer.steps > 0
    model = tmp_path / "runs" / fresh.id / runs.MODEL
    again = train.run(dataclasses.replace(spec, model_name_or_path=str(model)), progress=False)
    assert again.status == "ok", again.error
    assert again.transfer is None


@pytest.mark.parametrize("attention", LEARNS.values())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_short_training_is_told_from_what_half_precision_rounds(shared, attention, dtype):
    """50 steps of AdamW at 2e-5 move a number by 1e-3 at most."""
    model, *_ = prepared(shared, attention)
    for mechanism in model.mechanisms():
        mechanism.to(dtype).float()
    assert transfer.learning(model)
    with torch.no_grad():
        for mechanism in model.mechanisms():
            for parameter in mechanism.transferable():
                parameter += 2e-4 * torch.randn(parameter.shape)
    assert not transfer.learning(model)


def test_texts_that_a_mechanism_covers_are_left_out(shared, tmp_path, monkeypatch):
    read, forward = [], transfer._Stage.forward

    def remember(self, input_ids, attention_mask, token_type_ids=None):
        read.extend(attention_mask.sum(1).tolist())
        return forward(self, input_ids, attention_mask, token_type_ids)

    monkeypatch.setattr(transfer._Stage, "forward", remember)
    _, _, dataset = prepared(shared, "linformer")
    lengths = sorted(dataset["length"])
    K = lengths[200]
    _, done = fit(shared, tmp_path, f"linformer:projected_length={K - 2},global_tokens=2")
    assert done.rows == sum(n > K for n in lengths)  # one pass over those, and no step more
    assert sorted(read) == [n for n in lengths if n > K]
    assert fit(shared, tmp_path, f"linformer:projected_length={lengths[-1] - 2},global_tokens=2")[1] is None


def test_the_same_seed_gives_the_same_state(shared, tmp_path):
    states = [fit(shared, tmp_path, LEARNS["performer"], seed=seed)[0].state_dict() for seed in (3, 3, 4)]
    key = next(key for key in states[0] if "key_projection" in key)
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], states[2][key])


def stub(monkeypatch, seconds):
    """Transfer that takes long, by its own account."""
    fitted = transfer.fit
    monkeypatch.setattr(
        transfer, "fit", lambda *args, **kwargs: dataclasses.replace(fitted(*args, **kwargs), seconds=seconds)
    )


def test_a_run_says_what_its_recipe_did_and_counts_its_time(shared, tmp_path, monkeypatch):
    changes = {"attention": LEARNS["performer"], "num_train_epochs": 1, "output_dir": str(tmp_path)}
    plain = train.run(tiny.spec(shared, **changes, recipe="plain"), progress=False)
    assert plain.transfer is None
    assert plain.cost.train_seconds < 100
    stub(monkeypatch, 1000.0)
    record = train.run(tiny.spec(shared, **changes), progress=False)
    assert record.status == "ok", record.error
    assert record.spec["recipe"] == "transfer"
    assert record.transfer.seconds == 1000
    assert 1000 < record.cost.train_seconds < 1100
    assert runs.load(tmp_path / record.id) == record
    assert plain.id != record.id


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_every_recipe_trains_and_its_record_says_what_it_did(shared, tmp_path, recipe):
    changes = {"attention": LEARNS["linformer"], "num_train_epochs": 1, "output_dir": str(tmp_path)}
    record = train.run(tiny.spec(shared, **changes, recipe=recipe), progress=False)
    assert record.status == "ok", record.error
    assert (record.transfer is not None) == (recipes.get(recipe).transfer_steps > 0)
    assert runs.load(tmp_path / record.id) == record


def test_an_unknown_recipe_is_one_line(shared):
    with pytest.raises(BakeoffError, match=r"unknown recipe 'tranfer'\. Did you mean 'transfer'"):
        preparation.resolve(tiny.spec(shared, recipe="tranfer"))
    assert recipes.get("plain").transfer_steps == 0


def test_a_killed_run_resumes_behind_its_transfer(shared, tmp_path):
    """The account of a stage that is over survives; the resumed run equals an uninterrupted one."""
    changes = {"attention": LEARNS["performer"], "save_steps": 8, "num_train_epochs": 2}
    whole = train.run(tiny.spec(shared, **changes), progress=False)
    spec = tiny.spec(shared, **changes, output_dir=str(tmp_path))
    folder = tmp_path / spec.run_id()
    script = (
        "import json, os, signal, sys; sys.path.insert(0, 'tests')\n"
        "import dataclasses; from bakeoff.training import fine_tuning, train, transfer\n"
        "from bakeoff.spec import RunSpec\n"
        "fit = transfer.fit\n"
        "transfer.fit = lambda *a, **k: dataclasses.replace(fit(*a, **k), seconds=1000.0)\n"
        "class Killed(fine_tuning.Meter):\n"
        "    def on_save(self, *args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)\n"
        "Killed.__name__ = 'Meter'; fine_tuning.Meter = Killed\n"
        "train.run(RunSpec.from_dict(json.loads(sys.argv[1])), progress=False)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, json.dumps(spec.to_dict())], capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    account = json.loads((folder / train.CHECKPOINTS / "converted" / "transfer.json").read_text())
    record = train.run(spec, progress=False)
    assert record.status == "ok", record.error
    assert record.transfer.seconds == account["seconds"] == 1000
    assert 1000 < record.cost.train_seconds < 1100  # once, as in an uninterrupted run
    assert record.transfer.history == whole.transfer.history
    assert record.metrics == whole.metrics
    assert [line["loss"] for line in record.history] == pytest.approx(
        [line["loss"] for line in whole.history]
    )


@pytest.mark.parametrize(
    ("recipe", "damaged", "after"),
    [
        ("transfer", "converted", "conversion"),
        ("late", "converted", "conversion"),
        ("late", "checkpoint-16", "dense"),
    ],
)
def test_weights_that_the_mechanism_starts_from_are_made_anew(
    shared, tmp_path, monkeypatch, recipe, damaged, after
):
    """Where they are damaged; the run would fail at them for ever."""
    changes = {"attention": LEARNS["performer"], "recipe": recipe, "num_train_epochs": 2}
    whole = train.run(tiny.spec(shared, **changes), progress=False)
    spec = tiny.spec(shared, **changes, output_dir=str(tmp_path))
    folder = tmp_path / spec.run_id() / train.CHECKPOINTS

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    where = (fine_tuning, "StartFrom") if after == "conversion" else (transfer, "fit")
    monkeypatch.setattr(*where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.run(spec, progress=False)
    monkeypatch.undo()
    (folder / damaged / "model.safetensors").write_bytes(b"\0" * 100)
    record = train.run(spec, progress=False)
    assert record.status == "failed"
    assert f"and is now unusable-{damaged}; run it again" in record.error
    assert (folder / "checkpoint-16").exists() == (
        recipe == "late" and damaged == "converted"
    )  # none else goes
    record = train.run(spec, progress=False)
    assert record.status == "ok", record.error
    assert record.metrics == whole.metrics


def test_a_late_run_is_the_dense_one_until_it_is_converted(shared, tmp_path, monkeypatch):
    """The same losses to the middle; then the mechanism is fitted to the encoder as it is by then."""
    changes = {"num_train_epochs": 2, "output_dir": str(tmp_path)}
    dense = train.run(tiny.spec(shared, **changes, recipe="late"), progress=False)
    spec = tiny.spec(shared, **changes, attention=LEARNS["performer"], recipe="late")
    begun = checkpoints.load(
        spec.model_name_or_path, "performer", attention_options=spec.attention.options, seed=spec.seed
    ).state_dict()
    fitted, seen = transfer.fit, []

    def fit(model, *args, **kwargs):
        seen.append({key: value.clone() for key, value in model.state_dict().items()})
        return fitted(model, *args, **kwargs)

    monkeypatch.setattr(transfer, "fit", fit)
    late = train.run(spec, progress=False)
    assert (dense.status, late.status) == ("ok", "ok"), (dense.error, late.error)
    losses = [[line["loss"] for line in record.history] for record in (dense, late)]
    assert len(losses[0]) == len(losses[1]) == 32
    assert losses[0][:16] == losses[1][:16]
    assert all(a != b for a, b in zip(losses[0][16:], losses[1][16:], strict=True))
    assert dense.transfer is None
    assert late.transfer.steps > 0
    moved = {key for key, value in seen[0].items() if not torch.equal(value.cpu(), begun[key])}
    assert moved == {key for key in begun if ".bakeoff." not in key and "position_ids" not in key}


def test_a_late_longformer_starts_its_global_projections_from_what_was_trained(shared, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(transfer, "fit", lambda model, *args, **kwargs: seen.append(copy.deepcopy(model)))
    spec = tiny.spec(shared, attention="longformer", recipe="late", output_dir=str(tmp_path))
    record = train.run(spec, progress=False)
    assert record.status == "ok", record.error
    for site, mechanism in zip(seen[0].sites, seen[0].mechanisms(), strict=True):
        layer = seen[0].model.get_submodule(site.path)
        assert torch.equal(mechanism.query_global.weight, layer.query.weight)


def test_what_was_made_with_the_mechanism_is_never_trained_densely(shared, tmp_path, monkeypatch):
    base = checkpoints.load(tiny.spec(shared).model_name_or_path, "performer")
    base.save_pretrained(tmp_path / "base")
    checkpoints.load_tokenizer(tiny.spec(shared).model_name_or_path).save_pretrained(tmp_path / "base")
    monkeypatch.setattr(transfer, "densely", None)
    spec = tiny.spec(
        shared,
        attention="performer",
        recipe="late",
        model_name_or_path=str(tmp_path / "base"),
        output_dir=str(tmp_path / "runs"),
    )
    record = train.run(spec, progress=False)
    assert record.status == "ok", record.error
