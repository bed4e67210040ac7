"""The command line, from the outside: what it prints, where, and with which exit code."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

import encoders
import tiny
from bakeoff import __version__, cli, grid
from bakeoff.errors import BakeoffError
from bakeoff.spec import _parsed
from bakeoff.tasks import TASKS
from fixture_runs import write_run


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    tiny.spec(folder)
    return folder


def own(folder, **changes):
    files = {"train": folder / "train.csv", "eval": folder / "eval.csv", **changes}
    columns = ["--text-column", "text", "--label-column", "label"]
    return ["--train", files["train"], "--eval", files["eval"], *columns, "--model", folder / "encoder"]


def refused(answer, *said):
    """One line on stderr, exit code 2, nothing else."""
    code, stdout, stderr = answer
    assert code == 2, stderr
    assert stderr.startswith("error: "), stderr
    assert len(stderr.splitlines()) == 1, stderr
    assert "Traceback" not in stdout + stderr
    for part in said:
        assert part in stderr


def test_the_whole_way(call, shared, tmp_path):
    """check, run, run again, compare in three formats, report, ls, predict."""
    training = {"learning-rate": "3e-3", "num-train-epochs": "6", "per-device-train-batch-size": "16"}
    flags = [*own(shared), "--output-dir", tmp_path / "runs"]
    flags += [part for name, value in training.items() for part in (f"--{name}", value)]
    code, stdout, _ = call("check", *flags, "--attention", "performer:num_features=32,global_tokens=2")
    assert code == 0
    assert "3 attention layers" in stdout
    assert "0.0 % truncated" in stdout
    assert not (tmp_path / "runs").exists()
    for attention in ("dense", "performer:num_features=32,global_tokens=2"):
        code, stdout, stderr = call("run", *flags, "--attention", attention)
        assert code == 0, stderr
        assert "accuracy" in stdout
        assert "longest" in stdout
    folder = Path(stdout.splitlines()[-1])
    assert call("run", *flags, "--attention", attention)[1].splitlines()[-1] == str(folder)
    code, stdout, _ = call("compare", tmp_path / "runs")
    assert code == 0
    assert "performer" in stdout
    compared = json.loads(call("compare", tmp_path / "runs", "--format", "json")[1])
    assert compared
    assert "| " in call("compare", tmp_path / "runs", "--format", "markdown")[1]
    code, stdout, _ = call("report", tmp_path / "runs", "--output-dir", tmp_path / "report")
    assert code == 0
    assert (tmp_path / "report" / "report.html").is_file()
    assert folder.name in call("ls", tmp_path / "runs")[1]
    code, stdout, stderr = call("predict", folder, "a good film", "an awful film")
    assert code == 0, stderr
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert {line["label"] for line in lines} <= {"pos", "neg"}
    assert sum(lines[0]["probabilities"].values()) == pytest.approx(1)
    command = ("predict", folder, "--file", shared / "eval.csv", "--text-column", "text")
    from_file = [json.loads(line)["label"] for line in call(*command)[1].splitlines()]
    right = [label == wanted for label, (_, wanted) in zip(from_file, tiny.texts(60, 1), strict=True)]
    record = json.loads((folder / "run.json").read_text())
    assert sum(right) / 60 == pytest.approx(record["metrics"]["accuracy"]["value"])


def test_ls_says_what_there_is(call):
    from bakeoff.recipes import RECIPES
    from bakeoff.tasks import TASKS

    for what, names in (("tasks", TASKS), ("recipes", RECIPES)):
        code, stdout, _ = call("ls", what)
        assert code == 0
        assert all(name in stdout for name in names)


def test_predict_reads_stdin(call, shared, tmp_path, monkeypatch):
    import io

    _, stdout, _ = call("run", *own(shared), "--output-dir", tmp_path, "--num-train-epochs", "1")
    folder = stdout.splitlines()[-1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a film\nthe rain\n")))
    code, stdout, stderr = call("predict", folder, "-")
    assert code == 0, stderr
    assert len(stdout.splitlines()) == 2


@pytest.mark.parametrize("verb", ["compare", "predict", "try"])
def test_a_name_too_long_for_a_path_is_one_line(call, verb):
    code, stdout, stderr = call(verb, "long\n" * 80, *(["a text"] if verb == "predict" else []))
    assert (code, stdout, len(stderr.splitlines())) == (2, "", 1)
    assert "is too long for a path" in stderr


def test_a_path_that_cannot_be_reached_is_one_line(call, tmp_path, monkeypatch):
    def deny(self, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", deny)
    code, stdout, stderr = call("compare", tmp_path)
    assert (code, stdout) == (2, "")
    assert stderr == f"error: {tmp_path}: Permission denied; choose a path that can be reached.\n"


def test_a_printed_path_is_one_line_however_long(call, tmp_path):
    folder = tmp_path / ("long" * 40)
    write_run(tmp_path / "runs", "dense", range(40))
    code, stdout, stderr = call("report", tmp_path / "runs", "--output-dir", folder)
    assert code == 0, stderr
    assert str(folder / "report.html") in stdout.splitlines()


def test_grid_from_a_file(call, shared, tmp_path):
    """A grid over a mirror, in processes of its own; started again, it skips what is done."""
    mirror = tmp_path / "mirror" / "sst2"
    mirror.mkdir(parents=True)
    for split, name in (("train", "train"), ("validation", "eval")):
        rows = [(text, str(int(label == "pos"))) for text, label in tiny.texts(64, len(name))]
        (mirror / f"{split}.csv").write_text(
            "sentence,label\n" + "".join(f"{text},{label}\n" for text, label in rows)
        )
    file = tmp_path / "grid.yaml"
    file.write_text(
        f"tasks: [sst2]\nattentions: [dense, {{name: bigbird, block_size: 4}}]\nseeds: [1]\n"
        f"model_name_or_path: {shared / 'encoder'}\nnum_train_epochs: 1\nlearning_rate: 1e-3\n"
        f"data_dir: {mirror.parent}\noutput_dir: {tmp_path / 'runs'}\n"
    )
    code, stdout, stderr = call("grid", file)
    assert code == 0, stderr
    assert "[2/2]" in stdout
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("run.json")}
    assert len(before) == 2
    assert call("grid", file)[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("run.json")}


def test_grid_of_own_files(call, shared, tmp_path):
    code, stdout, stderr = call(
        "grid", *own(shared), "--attentions", "dense,longformer:window=4;global_tokens=2", "--seeds", "1",
        "--num-train-epochs", "1", "--output-dir", tmp_path,
    )  # fmt: skip
    assert code == 0, stderr
    assert "[2/2] train longformer:global_tokens=2,window=4 seed 1" in stdout
    refused(call("grid", *own(shared), "--tasks", "sst2", "--attentions", "dense"), "exclude each other")
    refused(call("grid", "--attentions", "dense"), "needs tasks (--tasks sst2,imdb), or own files (--train")
    refused(call("grid", "--tasks", "sst2"), "needs attentions (--attentions)")
    refused(call("grid", "--tasks", "sst2", "--attentions", "longformer:window=4,global_tokens=2"), "with ;")


def test_a_flag_overrides_what_a_grid_file_says_of_a_task(call, tmp_path, monkeypatch):
    file, asked = tmp_path / "grid.yaml", []
    file.write_text(
        "tasks: [sst2, imdb]\nattentions: [dense]\nmax_length: 64\n"
        "per_task: {sst2: {max_length: 128, weight_decay: 0.5}}\n"
    )

    def check(specs):
        asked.append([(spec.max_length, spec.weight_decay) for spec in specs])
        raise BakeoffError("enough")

    monkeypatch.setattr(grid, "check", check)
    call("grid", file)
    call("grid", file, "--max-length", "32")
    assert asked == [[(128, 0.5), (64, 0.01)], [(32, 0.5), (32, 0.01)]]


def test_runs_that_fail_are_no_bad_input(call, shared, tmp_path):
    """Exit code 1, as of a single run."""
    answer = call(
        "grid", *own(shared), "--attentions", "dense", "--max-memory", "1MB", "--output-dir", tmp_path
    )
    assert answer[0] == 1
    assert "error: 1 of 1 runs did not end well" in answer[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--lr", "1e-4"], ["No such option", "--lr", "see bakeoff run --help."]),
        (["run", "--learning-rate", "abc"], ["--learning-rate", "see bakeoff run --help."]),
        (["nosuch"], ["nosuch", "see bakeoff --help."]),
        (["compare"], ["Missing argument", "see bakeoff compare --help."]),
        (["convert", "minilm"], ["--attention", "see bakeoff convert --help."]),
        (["run", "--max-length"], ["--max-length"]),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line(call, arguments, said):
    refused(call(*arguments), *said)


def test_no_command_is_help_and_the_version_is_said(call):
    code, stdout, stderr = call()
    assert (code, stdout) == (2, "")
    assert all(f"\n  {verb} " in stderr for verb in ("run", "grid", "compare"))
    assert call("--version") == (0, f"bakeoff {__version__}\n", "")


def test_names_are_whole_on_a_narrow_terminal_and_in_a_pipe(call, monkeypatch):
    monkeypatch.setattr(cli.out, "_width", 60)
    monkeypatch.setenv("COLUMNS", "60")
    _, stdout, _ = call("run", "--help")
    assert all(f" {flag.partition('/')[0]} " in stdout for flag, _ in cli.FLAGS.values())
    _, stdout, _ = call("ls", "tasks")
    assert [line.split("\t")[0] for line in stdout.splitlines()] == list(TASKS)
    monkeypatch.setattr(cli.out, "_force_terminal", True)
    _, stdout, _ = call("ls", "tasks")
    assert all(name in stdout for name in TASKS)


def test_convert_and_its_refusals(call, shared, tmp_path):
    code, stdout, stderr = call("convert", shared / "encoder", "--attention", "linformer:projected_length=8",
                                "--max-length", "600", "--output", tmp_path / "out")  # fmt: skip
    assert code == 0, stderr
    assert "room for 600 tokens" in stdout
    refused(
        call("convert", shared / "encoder", "--attention", "dense", "--output", tmp_path / "out"), "not empty"
    )
    refused(call("convert", shared / "encoder", "--attention", "dens", "--output", tmp_path / "x"), "'dense'")


def test_attentions_with_a_value_a_layer():
    from bakeoff.spec import AttentionSpec

    for separator in ",;":
        spec = AttentionSpec.parse(f"longformer:window=[16,32]{separator}global_tokens=2")
        assert spec.options == {"window": (16, 32), "global_tokens": 2}
    _, listed = cli._attentions("dense,longformer:window=[16;32;16];global_tokens=2")
    assert listed.options == {"window": (16, 32, 16), "global_tokens": 2}


def test_an_unreadable_record_is_listed_and_stops_nothing(call, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    code, stdout, _ = call("ls", tmp_path)
    assert code == 0
    assert "unreadable" in stdout


def test_ls(call):
    assert "sst2" in call("ls", "tasks")[1]
    assert "window=512" in call("ls", "attentions")[1]
    refused(call("ls", "no-such-folder"), "no-such-folder")


BAD_FILES = {
    "empty": (b"", "empty"),
    "header only": (b"text,label\n", ""),
    "missing column": (b"txt,label\na,x\nb,y\n", "txt"),
    "not UTF-8": ("text,label\nd\u00e9j\u00e0,x\nb,y\n".encode("latin-1"), "UTF-8"),
    "one class": (b"text,label\na,neg\nb,neg\n", ""),
    "empty text": (b"text,label\na,neg\n ,pos\n", ""),
}


@pytest.mark.parametrize("fault", sorted(BAD_FILES))
def test_bad_training_files_give_one_line(call, shared, tmp_path, fault):
    content, said = BAD_FILES[fault]
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    refused(call("run", *own(shared, train=path), "--output-dir", tmp_path / "runs"), "bad.csv", said)
    assert not (tmp_path / "runs").exists()


def test_bad_input_gives_one_line(call, shared, tmp_path, monkeypatch):
    runs = ["--output-dir", tmp_path / "runs"]
    refused(call("run", *own(shared, train=tmp_path / "no.csv"), *runs), "no.csv")
    new = tiny.write(tmp_path / "new.csv", [("a film", "neg"), ("good", "pos"), ("fine", "mixed")])
    refused(call("run", *own(shared, eval=new), *runs), "mixed")
    refused(call("run", "--task", "sst", *runs), "Did you mean 'sst2'")
    refused(call("run", *own(shared), *runs, "--attention", "perfomer"), "Did you mean 'performer'")
    refused(call("run", *own(shared), *runs, "--attention", "longformer:windw=8"), "Did you mean 'window'")
    refused(call("run", *own(shared), *runs, "--max-length", "600"), "--extend-positions")
    refused(call("run", *own(shared), *runs, "--learning-rate", "-1"), "learning_rate must be above 0")
    refused(call("run"), "nothing to learn from")
    refused(call("run", *own(shared), *runs, "--attention", "longformer:window=7"), "even number")
    refused(
        call("run", *own(shared), *runs, "--attention", "longformer:window=8,window=16"),
        "window is given twice",
    )
    twice = tmp_path / "twice.yaml"
    twice.write_text("task: sst2\nseed: 1\nlearning_rate: 1e-4\nseed: 2\n")
    refused(call("check", twice), "twice.yaml", "'seed' is given twice")
    merged = "a: &a {k: 1}\nx: {inner: &b {<<: *a, k: 2}}\ny: {<<: *b}\n"
    assert _parsed(merged)["y"].keys() == {"k"}  # nothing is given twice
    twice.write_text("task: sst2\nattention: {name: longformer, window: 8, options: {window: 16}}\n")
    refused(call("check", twice), "window is given twice")
    refused(call("run", *own(shared), *runs, "--attention", "longformer:window=*"), "is no value")
    refused(call("run", *own(shared), *runs, "--lr-scheduler-type", "foo"), "lr_scheduler_type")
    refused(call("run", *own(shared), *runs, "--seed", 2**32), "seed must be below")
    refused(call("run", "--task", "sst2", "--label-column", "x"), "a task knows its columns")
    (tmp_path / "file").write_text("")
    refused(call("run", *own(shared), "--output-dir", tmp_path / "file" / "runs"), "cannot make")
    encoders.config("deberta").save_pretrained(tmp_path / "deberta")
    refused(
        call("run", *own(shared), *runs, "--model", tmp_path / "deberta"),
        "does not let its attention be replaced",
    )
    monkeypatch.delenv("BAKEOFF_DATA_DIR", raising=False)
    refused(call("run", "--task", "sst2", "--model", shared / "encoder", *runs), "sst2/train.parquet")
    refused(
        call("run", "--task", "imdb", "--model", shared / "encoder", "--data-dir", tmp_path, *runs), "imdb"
    )
    refused(call("compare", tmp_path / "nothing"), "no such folder")
    refused(call("compare", tmp_path), "")
    refused(call("predict", tmp_path, "text"), "")
    write_run(tmp_path / "several", "dense")
    refused(call("predict", tmp_path / "several", "text"), "holds runs; name one of them")
    refused(call("run", *own(shared), *runs, "--model", "minlm"), "Did you mean 'minilm'?")
    refused(call("predict", tmp_path), "give texts")
    assert not (tmp_path / "runs").exists()


def test_bad_run_files_give_one_line(call, tmp_path):
    file = tmp_path / "run.yaml"
    for content, said in [
        ("task: sst2\nlearning_rat: 1", "Did you mean 'learning_rate'"),
        ("task: [", "not valid YAML"),
        ("- a", "mapping"),
        ("task: sst2\nseed: x", "seed must be"),
        ("task: sst2\nattention: {name: longformer, options: 5}", "options is a mapping"),
        ("task: sst2\nattention: {name: longformer, window: 2020-01-01}", "window is a number"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ]:
        file.write_text(content)
        refused(call("run", file), "run.yaml", said)
    refused(call("run", tmp_path / "no.yaml"), "no such file")
    file.write_text("tasks: [sst2]\nattentions: [dense]\nlearning_rat: 1")
    refused(call("grid", file), "learning_rate")
    refused(call("check", file), "run.yaml is a grid file, by its 'tasks'; give it to bakeoff grid.")
    file.write_text("tasks: [sst2]\nattentions: [dense]\nper_task: {sst2: {seed: 3}}")
    refused(call("grid", file), "cannot set 'seed'")


@pytest.mark.parametrize(
    "verb",
    [
        "run",
        "grid",
        "sweep",
        "compare",
        "report",
        "convert",
        "predict",
        "try",
        "export",
        "draw",
        "ls",
        "check",
        "bench",
    ],
)
def test_help_teaches(call, verb):
    code, stdout, _ = call(verb, "--help")
    assert code == 0
    assert f"bakeoff {verb} " in stdout.partition("Examples:")[2] + stdout.partition("Example:")[2]


@pytest.mark.parametrize(
    "verb", [command.name or command.callback.__name__ for command in cli.app.registered_commands]
)
def test_examples_are_whole_lines(call, verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    epilog = next(c.epilog for c in cli.app.registered_commands if verb in (c.name, c.callback.__name__))
    lines = [line.strip() for line in call(verb, "--help")[1].splitlines()]
    assert epilog.count("\n") >= 2
    assert all(line.strip() in lines for line in epilog.splitlines()[2:])


def test_every_field_is_a_flag():
    from dataclasses import fields

    from bakeoff.spec import RunSpec

    assert {field.name for field in fields(RunSpec)} == cli.FLAGS.keys()


def test_the_module_runs_and_starts_without_torch():
    code = (
        "import sys, bakeoff, bakeoff.cli; assert not {'torch', 'transformers'} & sys.modules.keys();"
        "assert set(dir(bakeoff)) == set(bakeoff.__all__); [getattr(bakeoff, n) for n in bakeoff.__all__];"
        "assert callable(bakeoff.compare) and callable(bakeoff.run)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    ran = subprocess.run(
        [sys.executable, "-m", "bakeoff", "ls", "nope"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1
