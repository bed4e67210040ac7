"""Runs from spec to record, on a tiny encoder and a task it can learn."""

import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from bakeoff import comparison, env, grid, metrics, predict, runs
from bakeoff.attention import ATTENTIONS
from bakeoff.errors import BakeoffError
from bakeoff.spec import RunSpec, parse_size
from bakeoff.training import callbacks, fine_tuning, preparation, train
from bakeoff.training.trainer import LengthGroupedTrainer

OPTIONS = {
    "dense": "dense",
    "longformer": "longformer:window=4",
    "bigbird": "bigbird:block_size=2,num_random_blocks=1",
    "performer": "performer:num_features=32,global_tokens=2",
    "linformer": "linformer:projected_length=6,global_tokens=2",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def done(shared):
    spec = tiny.spec(shared)
    return spec, train.run(spec, progress=False)


@pytest.mark.parametrize("attention", sorted(ATTENTIONS))
def test_every_mechanism_learns_and_its_record_is_whole(shared, attention):
    spec = tiny.spec(shared, attention=OPTIONS[attention])
    record = train.run(spec, progress=False)
    assert record.status == "ok", record.error
    assert record.metrics["accuracy"].value > 0.7  # of 60 rows; a coin gets there once in a thousand
    folder = Path(spec.output_dir) / spec.run_id()
    assert runs.load(folder) == record
    assert not (folder / train.CHECKPOINTS).exists()
    assert not list(folder.rglob("*.tmp"))
    for value in (record.model, record.data, record.cost, record.train_loss):
        assert value is not None
    assert record.model.attention == attention
    assert record.model.layers == 3
    assert record.data.splits["train"].rows == 256
    assert record.data.labels == ("neg", "pos")
    assert all(
        value is not None for key, value in record.spec.items() if key in ("max_length", "learning_rate")
    )
    assert 0 < record.cost.train_seconds < record.seconds


def test_metrics_can_be_recomputed_from_predictions(done):
    spec, record = done
    predictions = runs.Predictions.load(Path(spec.output_dir) / record.id)
    again = metrics.compute(record.metrics, predictions.labels, np.array(predictions.logits))
    for name, metric in record.metrics.items():
        assert again[name].value == pytest.approx(metric.value, abs=1e-6)
    assert predictions.ids == list(range(60))
    assert predictions.texts[0] == tiny.texts(60, 1)[0][0]


def test_train_loss_is_the_mean_over_all_steps(shared):
    record = train.run(tiny.spec(shared, num_train_epochs=2), progress=False)
    assert [line["step"] for line in record.history] == list(range(1, 33))
    assert record.train_loss == pytest.approx(np.mean([line["loss"] for line in record.history]))


def test_a_finished_run_is_not_made_again(done, monkeypatch):
    spec, record = done
    monkeypatch.setattr(train, "prepare", lambda spec: pytest.fail("prepared again"))
    assert train.run(spec, progress=False) == record


def test_same_seed_same_result_other_seed_another(shared, tmp_path, done):
    spec, record = done
    again = train.run(dataclasses.replace(spec, output_dir=str(tmp_path)), progress=False)
    assert again.history == record.history
    assert again.metrics == record.metrics
    other = train.run(dataclasses.replace(spec, output_dir=str(tmp_path), seed=1), progress=False)
    assert other.history != record.history


def test_a_run_repeated_is_the_same_bit_for_bit(shared, tmp_path):
    """In one process, and as a grid's cell in its own; with dropout, every stage, and evaluations."""
    spec = tiny.spec(
        shared, attention=OPTIONS["performer"], recipe="late", attention_dropout=0.1, num_train_epochs=1,
        eval_steps=6,
    )  # fmt: skip
    first, again, cell = (dataclasses.replace(spec, output_dir=str(tmp_path / name)) for name in "abc")
    records = [train.run(first, progress=False), train.run(again, progress=False)]
    records += [record for _, record in grid.run([cell], progress=False)]
    figures = [(r.metrics, r.train_loss, r.history, r.transfer and r.transfer.history) for r in records]
    assert figures[0][3]
    assert figures[0] == figures[1] == figures[2]
    for file in (runs.PREDICTIONS, f"{runs.MODEL}/model.safetensors"):
        contents = {(tmp_path / name / spec.run_id() / file).read_bytes() for name in "abc"}
        assert len(contents) == 1, file


@pytest.mark.parametrize(
    ("attention", "recipe", "at"),
    [("dense", "plain", 23), ("performer", "transfer", 23), ("performer", "late", 13)]
    + [(attention, "late", at) for attention in ("linformer", "longformer") for at in (16, 23)],
)
def test_interrupted_and_resumed_equals_uninterrupted(shared, tmp_path, monkeypatch, attention, recipe, at):
    """Of 32 steps; a late recipe converts the encoder after 16."""
    spec = tiny.spec(shared, attention=OPTIONS[attention], recipe=recipe, save_steps=5, num_train_epochs=2)
    # Dropout makes the state of the random generators matter.
    wanted = train.run(dataclasses.replace(spec, attention_dropout=0.1), progress=False)
    spec = dataclasses.replace(spec, attention_dropout=0.1, output_dir=str(tmp_path))
    on_step_end = callbacks.Meter.on_step_end
    steps = []

    def interrupt(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        steps.append(state.global_step)
        if state.global_step == at and steps.count(at) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(callbacks.Meter, "on_step_end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.run(spec, progress=False)
    folder = tmp_path / spec.run_id()
    assert runs.load(folder).status == "cancelled"
    # A checkpoint cut off in the middle of writing is passed over.
    cut_off = folder / train.CHECKPOINTS / f"checkpoint-{at}"
    cut_off.mkdir()
    (cut_off / "trainer_state.json").write_text('{"epo')
    record = train.run(spec, progress=False)
    assert steps == [*range(1, at + 1), *range(at - at % 5 + 1, 33)]
    assert record.status == "ok"
    assert record.metrics == wanted.metrics
    assert record.train_loss == pytest.approx(wanted.train_loss, rel=1e-6)
    assert [line["step"] for line in record.history] == list(range(1, 33))
    assert runs.load(folder) == record
    assert (folder / "run.1.json").exists()


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("boom\n<b>"), "failed"), (MemoryError("no room"), "oom")]
)
def test_failures_are_recorded_and_retried(shared, tmp_path, monkeypatch, error, status):
    spec = tiny.spec(shared, output_dir=str(tmp_path))

    def fail(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(train.checkpoints, "load", fail)
        record = train.run(spec, progress=False)
    assert record.status == status
    assert record.error == f"{type(error).__name__}: {' '.join(str(error).split())}"
    assert record.data is not None
    assert record.model is None
    assert record.cost is None
    assert runs.load(tmp_path / spec.run_id()) == record
    assert train.run(spec, progress=False).status == "ok"
    assert [record.status for _, record in runs.find(tmp_path)] == ["ok"]
    assert (tmp_path / spec.run_id() / "run.1.json").exists()


def test_an_output_folder_that_holds_another_run(done, shared):
    spec, record = done
    folder = Path(spec.output_dir) / record.id
    with pytest.raises(BakeoffError, match="holds a run itself"):
        train.run(dataclasses.replace(spec, output_dir=str(folder)))
    assert not (folder / ".encoded").exists()
    changed = dataclasses.replace(record, digest="0" * 64)
    other = shared / "other" / spec.run_id()
    other.mkdir(parents=True)
    runs.save(other, changed)
    with pytest.raises(BakeoffError, match="holds another run"):
        train.run(dataclasses.replace(spec, output_dir=str(other.parent)))


def test_changed_data_is_another_run(done, tmp_path):
    spec = tiny.spec(tmp_path)
    before = spec.run_id()
    tiny.write(tmp_path / "train.csv", tiny.texts(256, 5))
    assert spec.run_id() != before


def test_defaults_follow_the_encoder_s_size(shared):
    spec = tiny.spec(shared, learning_rate=None, num_train_epochs=None)
    small, _ = preparation.resolve(spec)
    assert (small.learning_rate, small.num_train_epochs, small.max_length) == (1e-4, 3.0, 512)
    wide = tiny.encoder(shared / "wide", hidden_size=768, intermediate_size=8, num_attention_heads=8)
    base, _ = preparation.resolve(dataclasses.replace(spec, model_name_or_path=str(wide)))
    assert (base.learning_rate, base.num_train_epochs) == (2e-5, 3.0)


def test_longer_than_the_positions(shared):
    spec = tiny.spec(shared, max_length=600)
    with pytest.raises(BakeoffError, match=r"positions for 512 tokens; --extend-positions"):
        preparation.resolve(spec)
    assert preparation.resolve(dataclasses.replace(spec, extend_positions=True))[0].max_length == 600


def test_a_length_without_room_for_text_is_refused(shared):
    with pytest.raises(
        BakeoffError, match="max_length 2, but 2 tokens are special ones, which leaves no text"
    ):
        preparation.prepare(tiny.spec(shared, max_length=2))
    assert preparation.prepare(tiny.spec(shared, max_length=3)).eval.dataset["length"][:2] == [3, 3]


def test_extended_positions_train(shared, tmp_path):
    short = tiny.encoder(tmp_path / "short", max_position_embeddings=16)
    spec = tiny.spec(
        shared, model_name_or_path=str(short), max_length=40, extend_positions=True,
        output_dir=str(tmp_path), attention="linformer:projected_length=8", num_train_epochs=1,
    )  # fmt: skip
    record = train.run(spec, progress=False)
    assert record.status == "ok", record.error


def _die(spec, progress):
    os.kill(os.getpid(), signal.SIGKILL)


def _exit(spec, progress):
    raise SystemExit(7)


def test_a_grid_skips_what_is_done_and_survives_a_killed_cell(shared, tmp_path, monkeypatch, done):
    spec, record = done
    fresh = dataclasses.replace(spec, output_dir=str(tmp_path), num_train_epochs=1.0)
    grid.check([spec, fresh])
    with monkeypatch.context() as patch:
        patch.setattr(grid, "_train", _die)
        (_, first), (_, killed) = grid.run([spec, fresh], progress=False)
        assert first == record
        assert (killed.status, killed.id) == ("oom", fresh.run_id())
        assert runs.load(tmp_path / fresh.run_id()) == killed
        patch.setattr(grid, "_train", _exit)
        [(_, failed)] = grid.run([fresh], progress=False)
        assert (failed.status, failed.error) == ("failed", "the process ended with exit code 7")
    [(_, made)] = grid.run([fresh], progress=False)
    assert made.status == "ok"
    assert sorted(p.name for p in (tmp_path / fresh.run_id()).glob("run*.json")) == [
        "run.1.json", "run.2.json", "run.json"
    ]  # fmt: skip


def _ask_and_die(spec, progress, ask):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
    ask(1, {})


def _ask_in_a_step(spec, progress, ask):
    signal.signal(signal.SIGTERM, lambda *_: None)  # a step is finished first
    ask(1, {})


def test_a_cell_that_dies_before_its_answer_leaves_a_record(shared, tmp_path, monkeypatch):
    spec = tiny.spec(shared, output_dir=str(tmp_path))
    monkeypatch.setattr(grid, "_train", _ask_and_die)
    [(_, killed)] = grid.run([spec], progress=False, watch=lambda *_: time.sleep(1.5))
    assert killed.status == "oom"
    assert "killed by the system" in killed.error


def test_an_interruption_reaches_a_cell_that_waits_for_an_answer(shared, tmp_path, monkeypatch):
    spec = tiny.spec(shared, output_dir=str(tmp_path))
    monkeypatch.setattr(grid, "_train", _ask_in_a_step)

    def interrupt(*_):
        raise KeyboardInterrupt

    def give_up(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(grid.run([spec], progress=False, watch=interrupt))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_grid_is_checked_before_it_starts(shared, tmp_path):
    spec = tiny.spec(shared, output_dir=str(tmp_path))
    bad = dataclasses.replace(spec, model_name_or_path=str(shared / "nowhere"))
    with pytest.raises(BakeoffError, match="nowhere"):
        grid.check([spec, bad])
    damaged = tmp_path / spec.run_id() / runs.RECORD
    damaged.parent.mkdir()
    damaged.write_text("{")
    with pytest.raises(BakeoffError, match=r"run\.json: not a run record"):
        grid.check([dataclasses.replace(spec, seed=1), spec])


_GRID = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
import tiny
from bakeoff import grid
if __name__ == "__main__":
    list(grid.run([tiny.spec(Path({shared!r}), output_dir={out!r}, num_train_epochs=300)], progress=False))
"""


def test_a_killed_grid_takes_its_cell_along(shared, tmp_path):
    """The cell ends as if interrupted, with a record, instead of training on unseen."""
    script = tmp_path / "killed.py"
    path = [str(Path(__file__).parent), str(Path(train.__file__).parents[1])]
    script.write_text(_GRID.format(path=path, shared=str(shared), out=str(tmp_path / "runs")))
    process = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 300  # only a machine under load takes long
    while not list(tmp_path.glob("runs/*/checkpoints/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    while not (found := list(tmp_path.glob("runs/*/run.json"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert runs.load(found[0].parent).status == "cancelled"


def test_two_processes_never_share_a_run(shared, tmp_path):
    from filelock import FileLock

    spec = tiny.spec(shared, output_dir=str(tmp_path))
    (tmp_path / spec.run_id()).mkdir()
    with (
        FileLock(tmp_path / spec.run_id() / ".lock"),
        pytest.raises(BakeoffError, match="by another process"),
    ):
        train.run(spec, progress=False)
    assert train.run(spec, progress=False).status == "ok"


def interrupt(spec, monkeypatch, after):
    """Begin a run, and end it at a step."""
    on_step_end = callbacks.Meter.on_step_end

    def interrupting(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Meter, "on_step_end", interrupting)
        with pytest.raises(KeyboardInterrupt):
            train.run(spec, progress=False)


def test_a_damaged_checkpoint_is_said_and_put_aside(shared, tmp_path, monkeypatch):
    spec = tiny.spec(shared, output_dir=str(tmp_path), save_steps=5, num_train_epochs=2)
    interrupt(spec, monkeypatch, after=7)
    weights = tmp_path / spec.run_id() / train.CHECKPOINTS / "checkpoint-5" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    record = train.run(spec, progress=False)
    assert record.status == "failed"
    assert "checkpoint-5 could not be resumed from (" in record.error
    assert "and is now unusable-checkpoint-5; run it again" in record.error
    assert not weights.exists()
    assert (weights.parents[1] / "unusable-checkpoint-5" / "model.safetensors").stat().st_size == 100
    assert train.run(spec, progress=False).status == "ok"


@pytest.mark.parametrize("fault", ["tracker", "first step"])
def test_a_checkpoint_is_kept_where_the_fault_is_not_its_own(shared, tmp_path, monkeypatch, fault):
    spec = tiny.spec(shared, output_dir=str(tmp_path), save_steps=5, num_train_epochs=2)
    interrupt(spec, monkeypatch, after=7)

    code = "def fail(*args, **kwargs): raise RuntimeError('CUDA error: unspecified launch failure')"
    module = {"__name__": f"transformers.integrations.{fault}" if fault == "tracker" else "ours"}
    exec(code, module)
    place = (
        (callbacks.Meter, "on_train_begin") if fault == "tracker" else (LengthGroupedTrainer, "compute_loss")
    )
    with monkeypatch.context() as patch:
        patch.setattr(*place, module["fail"])
        record = train.run(spec, progress=False)
    assert record.error == "RuntimeError: CUDA error: unspecified launch failure"
    folder = tmp_path / spec.run_id() / train.CHECKPOINTS
    assert [path.name for path in folder.iterdir()] == ["checkpoint-5"]
    assert train.run(spec, progress=False).status == "ok"


def test_a_checkpoint_without_its_optimizer_is_none(shared, tmp_path):
    """Trainer would go on with a new one, whose learning rate warms up again."""
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    (folder / "trainer_state.json").write_text('{"global_step": 5}')
    names = ["model.safetensors", "optimizer.pt", "scheduler.pt"]
    for name in names:
        (folder / name).touch()
    assert fine_tuning.last_checkpoint(tmp_path) == folder
    for name in names:
        (folder / name).rename(folder / "away")
        assert fine_tuning.last_checkpoint(tmp_path) is None
        (folder / "away").rename(folder / name)


def test_a_loss_that_is_not_a_number_is_seen(shared, tmp_path):
    """Trainer would log the mean of the others, or 0, in its place."""
    record = train.run(tiny.spec(shared, output_dir=str(tmp_path), learning_rate=1e18), progress=False)
    assert record.status == "ok", record.error
    assert math.isnan(record.train_loss)
    [(_, loaded)] = runs.find(tmp_path)
    assert math.isnan(loaded.history[-1]["loss"])
    [group] = comparison.compare(tmp_path).groups
    assert "so training diverged; lower the learning rate (1e+18)" in group.rows[0].fault


def test_a_record_without_predictions_is_not_done(done):
    spec, record = done
    predictions = Path(spec.output_dir) / record.id / runs.PREDICTIONS
    kept = predictions.read_bytes()
    predictions.unlink()
    assert runs.finished(spec) is None
    predictions.write_bytes(kept)
    assert runs.finished(spec) == record


def test_failures_keep_what_was_reached(shared, tmp_path, monkeypatch):
    spec = tiny.spec(shared, output_dir=str(tmp_path))

    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(train.predict, "logits", fail)
    record = train.run(spec, progress=False)
    assert record.status == "oom"
    assert record.model.parameters > 0


def test_another_encoder_of_the_same_name_is_another_run(tmp_path):
    spec = tiny.spec(tmp_path)
    before = spec.run_id()
    tiny.encoder(tmp_path / "encoder", seed=9)
    assert spec.run_id() != before


def test_pairs_of_texts_and_three_string_labels(shared, tmp_path):
    rows = [(text, "rain", label if i % 3 else "01") for i, (text, label) in enumerate(tiny.texts(96, 0))]
    for name in ("train", "eval"):
        lines = ["premise,hypothesis,verdict", *(",".join(row) for row in rows)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    spec = tiny.spec(
        shared, train_file=str(tmp_path / "train.csv"), eval_file=str(tmp_path / "eval.csv"),
        text_columns=["premise", "hypothesis"], label_column="verdict", output_dir=str(tmp_path / "runs"),
        num_train_epochs=1,
    )  # fmt: skip
    record = train.run(spec, progress=False)
    assert record.status == "ok", record.error
    assert record.data.labels == ("01", "neg", "pos")
    predictions = runs.Predictions.load(tmp_path / "runs" / record.id)
    assert len(predictions.logits[0]) == 3
    assert "rain" in predictions.texts[0]
    classify = predict.Classifier(tmp_path / "runs" / record.id)
    (answer,) = classify([("a good film", "rain")])
    assert answer.probabilities.keys() == {"01", "neg", "pos"}


def test_training_rows_held_out_are_judged_on_and_not_trained_on(shared, tmp_path):
    spec = tiny.spec(shared, held_out_samples=50, num_train_epochs=1, output_dir=str(tmp_path))
    prepared = preparation.prepare(spec)
    assert len(prepared.task.eval.ids) == 50
    assert sorted(prepared.task.train.ids + prepared.task.eval.ids) == list(range(256))
    assert prepared.data.sampled
    assert "50 training rows held out" in prepared.data.source
    again = preparation.prepare(dataclasses.replace(spec, seed=7, max_train_samples=60))
    assert again.task.eval.ids == prepared.task.eval.ids
    assert len(again.task.train.ids) == 60
    record = train.run(spec, progress=False)
    assert record.status == "ok", record.error
    assert record.data.splits["eval"].rows == 50
    with pytest.raises(BakeoffError, match="held_out_samples 256, but there are 256 training rows"):
        preparation.prepare(dataclasses.replace(spec, held_out_samples=256))
    with pytest.raises(BakeoffError, match="leave out max_eval_samples"):
        dataclasses.replace(spec, max_eval_samples=10)


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json"])
def test_a_base_that_changes_in_its_place_is_another_run(shared, tmp_path, name):
    spec = tiny.spec(shared)
    base = shutil.copytree(spec.model_name_or_path, tmp_path / "base")
    spec = dataclasses.replace(spec, model_name_or_path=str(base))
    before = spec.digest()
    assert spec.digest() == before
    with (base / name).open("a") as file:
        file.write(" ")
    assert spec.digest() != before


def test_a_run_without_the_younger_fields_keeps_its_digest(shared):
    spec = tiny.spec(shared)
    assert "eval_steps" in spec.to_dict()
    assert spec.digest() != dataclasses.replace(spec, eval_steps=0.5).digest()
    assert spec.digest() != dataclasses.replace(spec, held_out_samples=10).digest()
    pinned = RunSpec(task="imdb", max_train_samples=1000, max_length=512, seed=1)  # before there were any
    assert pinned.digest().startswith("f0269e737bdea6f9")


def test_evaluations_during_training_change_nothing_and_stand_in_the_history(shared, tmp_path):
    plain = tiny.spec(shared, attention_dropout=0.1, num_train_epochs=2, output_dir=str(tmp_path))
    watched = dataclasses.replace(plain, eval_steps=0.3)
    seen = []
    wanted = train.run(plain, progress=False)
    record = train.run(watched, progress=False, watch=lambda *told: seen.append(told))
    assert record.metrics == wanted.metrics
    assert record.train_loss == wanted.train_loss
    evaluations = [line for line in record.history if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [10, 20, 30]  # of 32
    assert [number for number, _ in seen] == [1, 2, 3]
    assert seen[-1][1] == {k: v for k, v in evaluations[-1].items() if k.startswith("eval_")}
    assert seen[-1][1]["eval_accuracy"] > 0.5
    assert [line for line in record.history if "loss" in line] == list(wanted.history)


def test_a_watched_run_can_be_stopped(shared, tmp_path):
    spec = tiny.spec(shared, eval_steps=10, num_train_epochs=2, output_dir=str(tmp_path))
    record = train.run(spec, progress=False, watch=lambda number, figures: number == 2)
    assert (record.status, record.error) == ("stopped", "stopped after 20 of 32 steps")
    assert record.history[-1]["step"] == 20
    assert not (tmp_path / record.id / train.CHECKPOINTS).exists()
    asked = []
    [(_, made)] = grid.run([spec], progress=False, watch=lambda number, figures: asked.append(number))
    assert made.status == "ok"
    assert asked == [1, 2, 3]


def test_grids_share_a_folder(shared, tmp_path, monkeypatch):
    """A run in other hands is left alone and waited for; its record is nobody else's."""
    from filelock import FileLock

    specs = [tiny.spec(shared, num_train_epochs=1, seed=seed, output_dir=str(tmp_path)) for seed in (1, 2)]
    (tmp_path / specs[0].run_id()).mkdir()
    lock = FileLock(tmp_path / specs[0].run_id() / ".lock")
    lock.acquire()
    waits = []

    def wait(seconds):
        waits.append([p.parent.name for p in tmp_path.glob("*/run.json")])
        lock.release()

    monkeypatch.setattr(grid.time, "sleep", wait)
    made = [record.id for _, record in grid.run(specs, progress=False)]
    assert made == [specs[1].run_id(), specs[0].run_id()]
    assert waits == [[specs[1].run_id()]]
    assert not list(tmp_path.glob("*/run.1.json"))


@pytest.mark.parametrize(
    ("signals", "steps"), [([signal.SIGINT], 7), ([signal.SIGTERM] * 2, 7), ([signal.SIGINT] * 2, 6)]
)
def test_signals_finish_the_step_and_save_and_two_end_at_once(shared, tmp_path, monkeypatch, signals, steps):
    spec = tiny.spec(shared, num_train_epochs=2, attention_dropout=0.1, output_dir=str(tmp_path))
    wanted = train.run(dataclasses.replace(spec, output_dir=str(tmp_path / "whole")), progress=False)
    done = []

    class Sender(callbacks.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 6 and len(done) == 6:
                for number in signals:
                    os.kill(os.getpid(), number)
                    time.sleep(0.05)  # Python tells of it between two instructions

        def on_step_end(self, args, state, control, **kwargs):
            done.append(state.global_step)

    fine_tune = LengthGroupedTrainer.train
    monkeypatch.setattr(
        LengthGroupedTrainer,
        "train",
        lambda self, **kwargs: (self.add_callback(Sender()), fine_tune(self, **kwargs))[1],
    )
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train.run(spec, progress=False)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert len(done) == steps
    assert runs.load(tmp_path / spec.run_id()).status == "cancelled"
    saved = list((tmp_path / spec.run_id() / train.CHECKPOINTS).glob("checkpoint-*"))
    assert [path.name for path in saved] == (["checkpoint-7"] if steps == 7 else [])
    record = train.run(spec, progress=False)
    assert record.metrics == wanted.metrics
    assert record.train_loss == pytest.approx(wanted.train_loss, rel=1e-6)
    assert done[steps] == (8 if steps == 7 else 1)


def test_a_wish_at_the_last_step_loses_nothing(shared, tmp_path, monkeypatch):
    spec = tiny.spec(shared, num_train_epochs=1, output_dir=str(tmp_path))
    on_step_end = callbacks.Meter.on_step_end

    def interrupt(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == state.max_steps:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)

    monkeypatch.setattr(callbacks.Meter, "on_step_end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.run(spec, progress=False)
    record = train.run(spec, progress=False)
    assert record.status == "ok", record.error
    assert len(record.history) == 16


@pytest.mark.parametrize("at", [0, 20])
def test_a_step_that_does_not_fit_is_made_of_smaller_batches(shared, tmp_path, monkeypatch, capsys, at):
    """From the start, or from the checkpoint before the step that ran out; the result is the same."""
    changes = {"num_train_epochs": 2, "max_train_samples": 250, "save_steps": 8}
    wanted = train.run(tiny.spec(shared, **changes), progress=False)
    assert wanted.batches == {}
    step = LengthGroupedTrainer.training_step

    def limited(self, model, inputs, *args, **kwargs):
        if self.state.global_step >= at and len(inputs["labels"]) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LengthGroupedTrainer, "training_step", limited)
    record = train.run(tiny.spec(shared, **changes, output_dir=str(tmp_path)), progress=False)
    assert record.status == "ok", record.error
    assert record.batches == {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    assert capsys.readouterr().err.count("out of memory: going on with") == 2
    assert record.train_loss == pytest.approx(wanted.train_loss, rel=1e-5)
    assert record.metrics["loss"].value == pytest.approx(wanted.metrics["loss"].value, rel=1e-4)
    assert runs.load(tmp_path / record.id) == record


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="limits the host's memory")
def test_a_memory_limit_is_kept_and_lifted():
    status = Path("/proc/self/status").read_text()
    taken = int(next(line for line in status.splitlines() if line.startswith("VmData")).split()[1]) * 1024
    with env.memory_limit(taken + (256 << 20)):
        torch.empty(64 << 20, dtype=torch.uint8)
        with pytest.raises(RuntimeError) as caught:
            torch.empty(1 << 30, dtype=torch.uint8)
        assert env.is_out_of_memory(caught.value)
    torch.empty(1 << 30, dtype=torch.uint8)


def test_what_libraries_say_when_memory_ends():
    for said in (
        "can't start new thread",
        "could not create a primitive",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
    ):
        assert env.is_out_of_memory(RuntimeError(said))
    assert env.is_out_of_memory(MemoryError())
    assert not env.is_out_of_memory(RuntimeError("could not execute a primitive"))


def test_weights_that_do_not_fit_into_memory_are_not_called_unreadable(shared, tmp_path, monkeypatch):
    said = "unable to mmap 90868376 bytes from file <model.safetensors>: Cannot allocate memory (12)"

    def fail(*args, **kwargs):
        raise RuntimeError(said)

    monkeypatch.setattr(train.checkpoints.AutoModelForSequenceClassification, "from_pretrained", fail)
    record = train.run(tiny.spec(shared, output_dir=str(tmp_path)), progress=False)
    assert (record.status, record.error) == ("oom", f"RuntimeError: {said}")


def test_sizes_are_checked(shared):
    sizes = {"8GiB": 8 << 30, "500MB": 500_000_000, "1.5 KiB": 1536, "1024": 1024}
    assert {text: parse_size(text, "max_memory") for text in sizes} == sizes
    assert tiny.spec(shared, max_memory="8GiB").digest() == tiny.spec(shared).digest()
    for size in ("8 gigs", "-1GB", "0GB", "GiB", "8GiB "):
        with pytest.raises(BakeoffError, match="max_memory is a size such as 8GiB"):
            tiny.spec(shared, max_memory=size)
    for size in ("9" * 400, "9" * 300 + "TiB", "9223372036854775808"):
        with pytest.raises(BakeoffError, match=r"max_memory must be a number below 2\^63"):
            tiny.spec(shared, max_memory=size)


def test_trackers_are_off_by_default_and_those_asked_for_are_told(shared, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    spec = tiny.spec(shared, num_train_epochs=1, output_dir=str(tmp_path), report_to=["tensorboard"])
    record = train.run(spec, progress=False)
    assert record.status == "ok", record.error
    log = EventAccumulator(str(tmp_path / record.id / "tensorboard")).Reload()
    curve = [(event.step, event.value) for event in log.Scalars("train/loss")]
    assert [step for step, _ in curve] == [line["step"] for line in record.history]
    assert [loss for _, loss in curve] == pytest.approx([line["loss"] for line in record.history])
    plain = train.run(tiny.spec(shared, num_train_epochs=1), progress=False)
    assert not list((shared / "runs" / plain.id).rglob("*tfevents*"))
    assert plain.id == record.id
    with pytest.raises(BakeoffError, match=r"unknown report_to 'tensorbord'. Did you mean 'tensorboard'"):
        preparation.resolve(tiny.spec(shared, report_to=["tensorbord"]))
    with pytest.raises(BakeoffError, match="report_to comet_ml: it is not installed"):
        preparation.resolve(tiny.spec(shared, report_to=["comet_ml"]))


def test_memory_that_an_evaluation_lacks_is_not_taken_for_a_step_s(shared, tmp_path, monkeypatch):
    def fail(*args):
        raise MemoryError("no room")

    monkeypatch.setattr(fine_tuning, "_judge", fail)
    spec = tiny.spec(shared, num_train_epochs=1, eval_steps=4, output_dir=str(tmp_path))
    record = train.run(spec, progress=False)
    assert (record.status, record.error) == ("oom", "MemoryError: no room")
    assert record.batches == {}


def test_sigterm_beside_training_is_recorded(shared, tmp_path, monkeypatch):
    def terminate(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)

    monkeypatch.setattr(train.predict, "logits", terminate)
    spec = tiny.spec(shared, num_train_epochs=1, output_dir=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        train.run(spec, progress=False)
    assert runs.load(tmp_path / spec.run_id()).status == "cancelled"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
