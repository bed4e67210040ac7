"""Runs on a Ray cluster: of this machine, with two workers, which are killed once."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from bakeoff import cluster, grid, runs, sweep
from bakeoff.errors import BakeoffError
from bakeoff.spec import load_yaml
from test_sweep import values

pytest.importorskip("ray")


def workers(of: int) -> list[int]:
    """Process numbers of the Ray workers below process `of` that are in a task."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            titles[int(folder.name)] = (folder / "cmdline").read_bytes()
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue

    def below(number: int) -> bool:
        return number == of or (number in parents and below(parents[number]))

    return [number for number, title in titles.items() if title.startswith(b"ray::_call") and below(number)]


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the worker in /proc")
def test_a_grid_on_a_cluster_equals_a_serial_one_though_its_workers_are_killed(tmp_path):
    fields = {"num_train_epochs": 12, "save_steps": 20, "save_model": False}
    specs = [tiny.spec(tmp_path, attention=name, **fields) for name in ("dense", "performer", "linformer")]
    script = (
        "import json, sys; from bakeoff import grid; from bakeoff.spec import RunSpec\n"
        "for spec, record in grid.run(map(RunSpec.from_dict, json.loads(sys.argv[1])), ray='local'):\n"
        "    print('made', record.id, record.status)\n"
    )
    there = [json.dumps([spec.to_dict() | {"output_dir": str(tmp_path / "there")} for spec in specs])]
    process = subprocess.Popen([sys.executable, "-c", script, *there], stdout=subprocess.PIPE, text=True)
    checkpoint = (
        tmp_path / "there" / specs[0].run_id() / "checkpoints" / "checkpoint-20" / "trainer_state.json"
    )
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.02)
    for number in workers(process.pid):  # one of them is making the first run
        os.kill(number, signal.SIGKILL)
    said, _ = process.communicate()
    assert process.returncode == 0
    made = {line for line in said.splitlines() if line.startswith("made ")}  # Ray speaks too
    assert made == {f"made {spec.run_id()} ok" for spec in specs}
    attempts = list((tmp_path / "there" / specs[0].run_id()).glob("run*.json"))
    assert len(attempts) == 2  # the killed one, which its own process recorded, and the whole one
    for _, record in grid.run(specs, progress=False):
        made = runs.load(tmp_path / "there" / record.id)
        assert made.metrics == record.metrics
        assert made.train_loss == pytest.approx(record.train_loss, rel=1e-6)


def test_results_come_with_their_items_and_a_lost_one_is_named():
    assert dict(cluster.each(math.sqrt, [4.0, 9.0], "local")) == {4.0: 2.0, 9.0: 3.0}
    [(item, lost)] = cluster.each(os._exit, [1], "local")
    assert item == 1
    assert isinstance(lost, cluster.LostError)
    assert "died 4 times" in str(lost)


def test_bad_input_of_a_task_is_raised_here():
    with pytest.raises(BakeoffError, match=r"bad\.yaml"):
        list(cluster.each(load_yaml, [Path("bad.yaml")], "local"))


def test_no_cluster_is_one_line(tmp_path):
    with pytest.raises(BakeoffError, match=r"no Ray cluster there.*ray start --head"):
        list(grid.run([tiny.spec(tmp_path)], ray="127.0.0.1:1"))


def test_a_sweep_on_a_cluster(tmp_path):
    said, spec = [], sweep.SweepSpec.from_dict(values(tmp_path, tmp_path / "sweep", seeds=[1], n_trials=2))
    made = list(sweep.run(spec, progress=False, ray="local", say=lambda spec, record: said.append(record)))
    assert len(said) == 2
    assert {record.status for record in said} <= {"ok", "stopped"}
    assert [record.status for _, record in made] == ["ok"]
