"""Data-parallel runs: two processes with gloo on the CPU give what one gives with the same rows a step."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import tiny
from bakeoff import runs
from bakeoff.training import fine_tuning, preparation, train, trainer


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def torchrun(spec, tmp_path):
    """`bakeoff run` in two processes."""
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(spec.to_dict()))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launch, "-m", "bakeoff", "run", str(file)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("recipe", ["plain", "late"])
def test_two_processes_equal_one_with_the_same_rows_a_step(shared, tmp_path, recipe):
    fields = {"attention": "performer:num_features=32,global_tokens=2", "recipe": recipe, "eval_steps": 0.4}
    fields |= {"num_train_epochs": 2, "save_steps": 10, "attention_dropout": 0.0}
    wanted = train.run(tiny.spec(shared, **fields, per_device_train_batch_size=16), progress=False)
    assert wanted.status == "ok", wanted.error
    spec = tiny.spec(shared, **fields, per_device_train_batch_size=8, output_dir=str(tmp_path / "two"))
    process = torchrun(spec, tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    [(_, record)] = runs.find(tmp_path / "two")
    assert record.status == "ok", record.error
    assert out.count("accuracy") == 1
    assert record.environment["processes"] == 2
    losses = [[line.get("loss", line.get("eval_loss")) for line in r.history] for r in (record, wanted)]
    # Attention transfer ends on a batch that is not whole: processes fill it up, and go on a little apart.
    same = len(losses[1]) if recipe == "plain" else 17
    assert losses[0][:same] == pytest.approx(losses[1][:same], rel=1e-4)
    assert losses[0][same:] == pytest.approx(losses[1][same:], rel=0.15)
    if recipe == "plain":
        assert record.metrics["loss"].value == pytest.approx(wanted.metrics["loss"].value, rel=1e-3)
    assert len(runs.Predictions.load(tmp_path / "two" / record.id).logits) == 60


def test_two_processes_stop_together_and_resume(shared, tmp_path):
    """In the middle of a pass; what follows is as if nothing had been."""
    fields = {"num_train_epochs": 20, "save_steps": 100}
    wanted = train.run(tiny.spec(shared, **fields, per_device_train_batch_size=16), progress=False)
    assert wanted.status == "ok", wanted.error
    spec = tiny.spec(shared, **fields, per_device_train_batch_size=8, output_dir=str(tmp_path))
    process = torchrun(spec, tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/checkpoints/checkpoint-100/trainer_state.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    [(folder, record)] = runs.find(tmp_path)
    assert record.status == "cancelled"
    assert 100 < fine_tuning._step(fine_tuning.last_checkpoint(folder / train.CHECKPOINTS)) < 320
    process = torchrun(spec, tmp_path)
    _, err = process.communicate()
    assert process.returncode == 0, err
    record = runs.load(folder)
    assert record.status == "ok", record.error
    losses = [{line["step"]: line["loss"] for line in r.history} for r in (record, wanted)]
    later = [step for step in losses[1] if step > 200 and step in losses[0]]
    assert len(later) > 10
    assert [losses[0][s] for s in later] == pytest.approx([losses[1][s] for s in later], rel=0.05, abs=0.01)


def test_the_order_of_a_pass_survives_a_resumed_loader(shared):
    """The wrappers of a resumed loader of several processes pass no epoch on; a callback does."""
    prepared = preparation.prepare(tiny.spec(shared))
    ours = trainer.LengthGroupedTrainer(
        prepared.load_model(),
        fine_tuning._arguments(prepared.spec, shared / "none"),
        train_dataset=prepared.train.dataset,
        progress=False,
    )
    sampler = ours._get_train_sampler()
    ours.state.epoch = 3.0
    ours.callback_handler.on_epoch_begin(ours.args, ours.state, ours.control)
    assert sampler.epoch == 3
