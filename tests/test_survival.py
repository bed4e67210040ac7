"""kill -9 at random moments of a run, a grid and a sweep: nothing is lost, and the end is the same.

`BAKEOFF_KILLS=10 pytest tests/test_survival.py` kills each ten times; by default once.
"""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from bakeoff import runs
from bakeoff.errors import BakeoffError
from bakeoff.training import train

KILLS = int(os.environ.get("BAKEOFF_KILLS", "1"))
TRAINING = {
    "attention": "linformer:projected_length=6,global_tokens=2",
    "num_train_epochs": 4,
    "save_steps": 5,
}


def command(kind, shared, out):
    """A command line of this kind, its file beside the runs."""
    spec = tiny.spec(shared, **TRAINING).to_dict()
    kept = ("train_file", "eval_file", "text_columns", "label_column", "model_name_or_path", *TRAINING)
    values = {name: spec[name] for name in kept} | {"output_dir": str(out), "learning_rate": 3e-3}
    if kind == "grid":
        for split, name in (("train", "train"), ("eval", "validation")):
            rows = (shared / f"{split}.csv").read_text().splitlines()[1:]
            named = [line.replace(",neg", ",0").replace(",pos", ",1") for line in rows]
            (shared / "sst2").mkdir(exist_ok=True)
            (shared / "sst2" / f"{name}.csv").write_text("\n".join(["sentence,label", *named]))
        for name in ("train_file", "eval_file", "text_columns", "label_column", "attention"):
            del values[name]
        values |= {"tasks": ["sst2"], "attentions": [TRAINING["attention"], "dense"], "data_dir": str(shared)}
    if kind == "sweep":
        # What is searched changes no result: which trials a kill leaves to be drawn is not to matter.
        search = {"per_device_eval_batch_size": [16, 32]}
        values |= {"search": search, "n_trials": 2, "held_out_samples": 40, "seeds": [1]}
    file = out.parent / f"{out.name}.yaml"
    file.write_text(json.dumps(values))
    return [sys.executable, "-m", "bakeoff", kind, str(file)]


def records(out):
    """Every record by the run's place; reading one that is not whole raises."""
    found = {path.relative_to(out): record for path, record in runs.find(out)} if out.exists() else {}
    assert not [error for error in found.values() if isinstance(error, Exception)]
    return found


@pytest.mark.parametrize("kind", ["run", "grid", "sweep"])
def test_kill_9_at_random_moments_loses_nothing(tmp_path, kind):
    if kind == "sweep":
        pytest.importorskip("optuna")
    rng, shared = random.Random(kind), tmp_path / "shared"
    shared.mkdir()
    clock = time.monotonic()
    subprocess.run(command(kind, shared, tmp_path / "whole"), check=True, capture_output=True)
    seconds = time.monotonic() - clock
    wanted = records(tmp_path / "whole")
    assert wanted
    line, ended = command(kind, shared, tmp_path / "killed"), {}
    for _ in range(KILLS):
        process = subprocess.Popen(
            line, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(0.3, 1) * seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        found = records(tmp_path / "killed")
        assert all(found[place] == record for place, record in ended.items())
        ended = {place: record for place, record in found.items() if record.status == "ok"}
    for attempt in range(3):  # a trial that was killed is only made again once it is seen to be dead
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, (attempt, done.stderr)
        found = {
            p: r for p, r in records(tmp_path / "killed").items() if kind != "sweep" or "best" in p.parts
        }
        if all(record.status == "ok" for record in found.values()):
            break
    wanted = {p: r for p, r in wanted.items() if kind != "sweep" or "best" in p.parts}
    assert [r.metrics for r in found.values()] == [r.metrics for r in wanted.values()]
    assert [r.train_loss for r in found.values()] == pytest.approx([r.train_loss for r in wanted.values()])
    assert not [p for p in (tmp_path / "killed").rglob("*") if p.suffix == ".tmp" or p.name == "checkpoints"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk without room is Linux's /dev/full")
@pytest.mark.parametrize("name", [runs.RECORD, runs.PREDICTIONS])
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, name, monkeypatch):
    """The temporary file is on /dev/full from when what lay there before was cleared away."""
    wanted = train.run(tiny.spec(tmp_path, num_train_epochs=1), progress=False)
    spec = tiny.spec(tmp_path, num_train_epochs=1, output_dir=str(tmp_path / "full"))
    unlink = Path.unlink

    def full(path, missing_ok=False):
        unlink(path, missing_ok=missing_ok)
        if path.name == f"{name}.tmp":
            path.symlink_to("/dev/full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", full)
        with pytest.raises(
            BakeoffError, match=r"cannot write .*\(No space left on device\); make room there"
        ):
            train.run(spec, progress=False)
    (tmp_path / "full" / spec.run_id() / f"{name}.tmp").unlink(missing_ok=True)
    found = train.run(spec, progress=False)
    assert found.status == "ok"
    assert found.metrics == wanted.metrics


def test_checkpoints_that_find_no_room_end_in_a_record_and_the_run_in_its_result(tmp_path):
    """A limit on the size of files stands for a full disk: weights do not fit, a record does."""
    line = command("run", tmp_path, tmp_path / "out")
    limit = f"ulimit -f 40; exec {shlex.join(line)}"  # blocks of 1,024 bytes
    failed = subprocess.run(["bash", "-c", limit], capture_output=True, text=True)
    assert failed.returncode == 1
    (record,) = records(tmp_path / "out").values()
    assert record.status == "failed"
    assert "too large" in record.error
    assert record.error in failed.stderr
    assert subprocess.run(line, capture_output=True).returncode == 0
    (record,) = records(tmp_path / "out").values()
    assert record.status == "ok"
