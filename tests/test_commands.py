"""Every command and every Python snippet of README and docs: run here in small, or read to its last flag.

A block of code says by a comment above it, `<!-- needs: hub -->`, what it takes that a test has not. Its
commands are then only read, like those of SLOW verbs anywhere but on the page that runs them: the command
line parses them, checks files, fields and options, and is stopped where the work begins. All others are run,
page by page, in a folder that holds what the pages speak of, with a tiny encoder and a few rows.
"""

import dataclasses
import io
import itertools
import re
import shlex
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import typer
import yaml
from pyarrow import parquet

import bakeoff
import fixture_runs
import tiny
from bakeoff import cli
from bakeoff.attention import resolve_options
from bakeoff.spec import RunSpec

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = {"network", "hub", "gpu", "cluster", "minutes", "hours"}
BLOCK = re.compile(r"(?:^<!-- needs: ([\w, ]+) -->\n\n?)?^```(\w*)\n(.*?)^```$", re.M | re.S)
PROGRAMS = ("bakeoff", "pip", "make", "torchrun", "accelerate", "python", "cat", "mkdocs")

#: Where each slow verb is run; on other pages its commands are read.
SLOW = {"grid": "docs/start.md", "sweep": "docs/sweeps.md", "bench": "docs/study.md"}
#: Where the work of a verb begins.
WORK = {
    "run": "bakeoff.training.train.run",
    "check": "bakeoff.training.preparation.prepare",
    "grid": "bakeoff.grid.check",
    "sweep": "bakeoff.sweep.run",
    "compare": "bakeoff.comparison.compare",
    "report": "bakeoff.report.write",
    "convert": "bakeoff.checkpoints.convert",
    "predict": "bakeoff.predict.Classifier",
    "try": "bakeoff.playground.listen",
    "export": "bakeoff.export.export",
    "bench": "bakeoff.bench.bench",
    "draw": "bakeoff.draw.draw",
}
_EVAL = ["--max-eval-samples", "8"]
_TINY = ["--max-train-samples", "8", "--num-train-epochs", "1", "--model", "encoder"]
#: What makes a verb's work small; the last of a flag given twice counts.
SHRINK = {
    "check": [*_EVAL, "--max-train-samples", "8", "--model", "encoder"],
    "run": [*_EVAL, *_TINY],
    "grid": [*_EVAL, *_TINY],
    "sweep": [*_TINY, "--n-trials", "1"],
    "try": ["--port", "0"],
    "bench": [
        "--lengths",
        "40",
        "--attentions",
        "dense,bigbird",
        "--against",
        "sdpa",
        "--hidden-size",
        "32",
        "--num-heads",
        "2",
        "--repeats",
        "1",
    ],
}


@dataclasses.dataclass(frozen=True)
class Block:
    page: str
    line: int
    needs: frozenset[str]
    language: str
    text: str


def blocks(path: Path) -> list[Block]:
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    return [
        Block(
            name,
            text.count("\n", 0, match.start(2)) + 1,
            frozenset(re.split(r",\s*", match[1])) if match[1] else frozenset(),
            match[2],
            match[3],
        )
        for match in BLOCK.finditer(text)
    ]


def lines(block: Block) -> list[list[str]]:
    """The words of each command, comments left out."""
    text = block.text.replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def ours(words: list[str]) -> list[str] | None:
    """What `bakeoff` gets in a command line, whatever launches it; None where it is not called."""
    while words and re.fullmatch(r"[A-Z_]+=\S+", words[0]):
        words = words[1:]
    if "-m" in words and words[words.index("-m") + 1] == "bakeoff":
        words = words[words.index("-m") + 1 :]
    elif "|" in words:
        words = words[words.index("|") + 1 :]
    if words[0] != "bakeoff":
        return None
    words = words[: words.index(">")] if ">" in words else words
    return [word for word in words[1:] if word not in ("&", "…")]


ALL = {path.relative_to(ROOT).as_posix(): blocks(path) for path in PAGES}
COMMANDS = typer.main.get_command(cli.app).commands
SHELL = [block for found in ALL.values() for block in found if block.language == "sh"]


def examples(verb: str) -> list[str]:
    return re.findall(r"^  (bakeoff .*?)(?:  \(.*)?$", COMMANDS[verb].epilog, re.M)


class Reached(Exception):  # noqa: N818  # not an error
    """The work would begin here."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What the pages speak of: an encoder, a mirror, own files, run files, runs."""
    folder = tmp_path_factory.mktemp("place")
    tiny.encoder(folder / "encoder")
    tiny.mirror(folder / "mirror")
    rows = tiny.texts(16, 0)
    for name in ("a.csv", "b.csv", "reviews.csv"):
        tiny.write(folder / name, rows, ("review", "stars"))
    tab = ["question\tanswer\tok", *(f"{text}\t{text}\t{label}" for text, label in rows)]
    (folder / "a.tsv").write_text("\n".join(tab))
    row = '{{"question": "{0}", "answer": "{0}", "ok": "{1}"}}\n'
    (folder / "b.jsonl").write_text("".join(row.format(text, label) for text, label in rows))
    parquet.write_table(pa.table({"question": ["a film"], "answer": ["the rain"]}), folder / "pairs.parquet")
    fixture_runs.write_bench(folder / "bench")
    (folder / "lines.txt").write_text("a film\nthe rain\n")
    shutil.copytree(ROOT / "studies", folder / "studies")
    for path in (folder / "studies" / "sweeps").glob("*.yaml"):
        small = {"seeds": [1], "held_out_samples": 8, "evaluations": 1}
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | small))
    for name, page in (("grid.yaml", "docs/index.md"), ("sweep.yaml", "docs/sweeps.md")):
        (written,) = (block.text for block in ALL[page] if block.language == "yaml")
        (folder / name).write_text(written)
    (folder / "run.yaml").write_text("task: sst2\n")
    for name in ("a/x", "b/y", "sweep/best/z", "NAME"):
        at = folder / "runs" / name
        fixture_runs.write_run(at.parent, "dense", range(len(name)), rows=40, seed=len(name), folder=at.name)
    (folder / "docs" / "attention").mkdir(parents=True)
    files = {"train_file": "a.csv", "eval_file": "b.csv"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        spec = tiny.spec(folder, num_train_epochs=1, text_columns=["review"], label_column="stars", **files)
        record = bakeoff.run(spec)
    (folder / "RUN").symlink_to(folder / "runs" / record.id)
    (folder / "PAIRS").symlink_to(folder / "runs" / record.id / "model")  # by itself it takes pairs too
    (folder / "FOLDER").symlink_to("encoder")
    (folder / "MIRROR").symlink_to("mirror")
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """A copy of the place to work in, and names from Python made small too."""
    shutil.copytree(place, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("BAKEOFF_DATA_DIR", "mirror")
    monkeypatch.setattr("bakeoff.playground.serve", lambda candidates, listening: listening.close())
    few = {
        "max_train_samples": 8,
        "max_eval_samples": 8,
        "num_train_epochs": 1,
        "model_name_or_path": "encoder",
    }
    run = bakeoff.run
    monkeypatch.setattr(bakeoff, "run", lambda spec: run(dataclasses.replace(spec, **few)))


@pytest.fixture
def read(call, monkeypatch):
    """Give a command to the command line, and stop it where the work begins."""

    def stop(*given, **named):
        for spec in given[0] if given and isinstance(given[0], list) else given:
            if isinstance(spec, RunSpec):
                resolve_options(spec.attention.name, spec.attention.options)
        raise Reached

    def invoke(arguments):
        if arguments[0] == "ls":
            COMMANDS["ls"].make_context("ls", arguments[1:])
            return
        with monkeypatch.context() as patch:
            patch.setattr(WORK[arguments[0]], stop)
            patch.setattr(sys, "argv", ["bakeoff", *arguments])
            with pytest.raises(Reached):
                cli.main()

    return invoke


def is_run(block: Block, verb: str) -> bool:
    return not block.needs and SLOW.get(verb, block.page) == block.page


@pytest.mark.parametrize("page", [page for page, found in ALL.items() if found])
def test_a_page_s_commands_and_snippets_work_in_their_order(page, here, call, read, monkeypatch):
    for block in ALL[page]:
        where = f"{page}:{block.line}"
        if block.language == "python":
            code = compile(block.text.replace('"minilm"', '"encoder"'), where, "exec")
            if not block.needs:
                exec(code, {"__name__": where})
        for words in lines(block) if block.language == "sh" else ():
            arguments = ours(words)
            if arguments is None:
                check_other(words)
            elif "-m" in words or not is_run(block, arguments[0]):
                read(arguments)
            else:
                given = ["encoder" if word == "minilm" else word for word in arguments]
                shrink = SHRINK.get(arguments[0], [])
                if "FOLDER" in given:
                    shrink = shrink[: shrink.index("--model")]
                if "|" in words:
                    piped = io.BytesIO(Path(words[1]).read_bytes())
                    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(piped))
                code, _, stderr = call(*given, *shrink)
                assert code == 0, f"{where}: {' '.join(words)}: {stderr}"


def check_other(words):
    """A command of another program: the files, targets and extras it names are there."""
    program, rest = Path(words[0]).name, words[1:]
    assert program in {*PROGRAMS, "pytest", "ruff", "mypy"}, words
    if program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in rest if "=" not in word} <= {*targets}
    if program == "python" and rest[0] != "-m":
        assert (ROOT / rest[0]).is_file(), words
    if program == "pip":
        extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)
        named = [name for word in rest for name in re.findall(r"\[([\w,]+)\]", word)]
        assert {extra for name in named for extra in name.split(",")} <= {*extras}
        assert all((ROOT / word).exists() for word in rest if word.endswith(".txt"))


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_the_help_s_examples_are_read_to_the_last_flag(verb, here, read):
    assert examples(verb)
    for line in examples(verb):
        if "storage" not in line:  # a database that is not here
            read(ours(shlex.split(line)))


def test_each_verb_is_run_somewhere():
    run = {
        arguments[0]
        for b in SHELL
        for words in lines(b)
        if (arguments := ours(words)) and is_run(b, arguments[0])
    }
    assert run == {*COMMANDS}
    assert {*WORK, "ls"} == {*COMMANDS}


def test_what_a_block_needs_is_said_with_known_words():
    said = {need for found in ALL.values() for block in found for need in block.needs}
    assert said <= NEEDS
    for path in PAGES:  # a comment that stands above no block would say nothing
        said = len(re.findall(r"^<!-- needs:", path.read_text(), re.M))
        assert said == sum(bool(block.needs) for block in blocks(path)), path


def test_every_command_stands_in_a_block_of_its_language():
    for path in PAGES:
        text = BLOCK.sub("", path.read_text(encoding="utf-8"))
        assert not re.findall(rf"^    (?:\w+=\S+ )?(?:{'|'.join(PROGRAMS)}) .*", text, re.M), path
    for found in ALL.values():
        for block in found:
            assert block.language, f"{block.page}:{block.line}"
            is_shell = any(line.startswith("bakeoff ") for line in block.text.splitlines())
            assert block.language == "sh" or not is_shell, f"{block.page}:{block.line}"


def test_a_command_for_the_hub_or_a_gpu_says_so():
    for block in SHELL:
        for words in lines(block):
            for arguments in filter(None, [ours(words)]):
                named = [b for a, b in itertools.pairwise(arguments) if a == "--model"]
                named += arguments[1:2] if arguments[0] == "convert" else []
                assert {*named} <= {"minilm", "FOLDER"} or "hub" in block.needs, words
                assert "cuda" not in arguments or "gpu" in block.needs, words


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_flags_of_commands_within_sentences_exist(path):
    prose = BLOCK.sub("", path.read_text(encoding="utf-8"))
    for verb, rest in re.findall(r"`bakeoff (\w+)([^`]*)`", prose):
        known = {option for parameter in COMMANDS[verb].params for option in parameter.opts} | {"--help"}
        assert {word for word in rest.split() if word.startswith("--")} <= known, (verb, rest)
