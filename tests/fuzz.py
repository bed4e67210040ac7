"""Whatever a file holds, its reader gives a result or a one-line error: the readers, and what they must keep.

`tests/test_fuzz.py` asks it of generated files. Guided by coverage, for as long as one likes, it is asked by

    pip install -e ".[fuzz]"
    python tests/fuzz.py READER [CORPUS …] [-runs=N] [-max_total_time=SECONDS]

where arguments behind READER are libFuzzer's. The first CORPUS is a folder that grows; without one, the valid
files of the reader are the start. An input that breaks the rule is written to ./crash-….
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    import atheris

    traced: contextlib.AbstractContextManager = atheris.instrument_imports(include=["bakeoff", "yaml"])
else:
    traced = contextlib.nullcontext()

with traced:
    from rich.console import Console

    import encoders
    import fixture_runs
    import tiny
    from bakeoff import checkpoints, comparison, predict, report, runs
    from bakeoff.attention import resolve_options
    from bakeoff.bench import result, tables
    from bakeoff.errors import BakeoffError
    from bakeoff.spec import AttentionSpec, GridSpec, RunSpec, load_yaml
    from bakeoff.sweep import SweepSpec
    from bakeoff.tasks import files
    from bakeoff.training import fine_tuning

SECONDS, MEMORY = 5, 2**30  # that one input may take, memory in bytes
LONGEST = 2_000  # characters of an error

TEXTS = [
    "plain",
    'says "no", twice',
    "two\nlines",
    "a C1 break\x85 and\u2028\u2029",
    "tab\there",
    "\0",
    "文字 🙂",
]
LABELS = ["01", "1.0", "nan", "None", "null", "1", "true"]


@dataclasses.dataclass(frozen=True)
class Reader:
    """What reads a file.

    Attributes:
        file: where it lies, below a folder.
        prepare: puts into the folder what else is needed there; valid contents of the file.
        read: reads it.
    """

    file: str
    prepare: Callable[[Path], list[bytes]]
    read: Callable[[Path], object]

    def holds(self, folder: Path, data: bytes) -> None:
        """Read `data`; raise unless there is a result, or an error of one line."""
        (folder / self.file).write_bytes(data)
        try:
            self.read(folder)
        except BakeoffError as error:
            message = str(error)
            assert message.isprintable(), message
            assert 0 < len(message) <= LONGEST, len(message)


def _table(suffix: str) -> Reader:
    """The data files of users."""
    from test_files import write

    def prepare(folder: Path) -> list[bytes]:
        rows = list(zip(TEXTS, LABELS, strict=True))
        path = write(folder / f"valid{suffix}", rows)
        return [path.read_bytes(), write(path, [("x", "1")]).read_bytes()]

    def read(folder: Path) -> object:
        return files.survey(folder / f"table{suffix}", ("text", "label"))

    return Reader(f"table{suffix}", prepare, read)


RUN = b"task: &t sst2\nattention: longformer:window=8,global_tokens=[1, 2]\nseed: 0x2\nlearning_rate: 2e-5\n"
ATTENTION = b"longformer:window=64,global_tokens=[1, 2]"
GRID = {
    "tasks": ["sst2", "imdb"],
    "attentions": ["dense", {"name": "longformer", "window": 64}],
    "seeds": [1, 2],
}
SEARCH = {"learning_rate": {"low": 1e-5, "high": "1e-3", "log": True}, "attention.num_features": [16, 64]}


def _yaml(kind: type[RunSpec | GridSpec | SweepSpec], *valid: bytes | dict[str, object]) -> Reader:
    """The files of `bakeoff run`, `grid` and `sweep`."""

    def read(folder: Path) -> object:
        spec = kind.from_dict(load_yaml(folder / "file.yaml"), "file.yaml")
        return spec.digest() if isinstance(spec, RunSpec) else spec

    seeds = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in valid]
    return Reader("file.yaml", lambda folder: seeds, read)


def _read_attention(folder: Path) -> None:
    spec = AttentionSpec.parse((folder / "attention").read_bytes().decode(errors="surrogateescape"))
    resolve_options(spec.name, spec.options)


def _runs(folder: Path) -> Path:
    """Two runs that can be compared; what becomes of the first must not take the other out of the tables."""
    fixture_runs.write_run(folder / "runs", "dense", range(8), rows=40, folder="other")
    return fixture_runs.write_run(folder / "runs", "performer", range(4, 16), rows=40, folder="changed")


def _records(folder: Path) -> list[bytes]:
    changed = _runs(folder)
    whole = (changed / runs.RECORD).read_bytes()
    values = json.loads(whole)
    failed = values | {"status": "failed", "error": "boom", "model": None, "data": None}
    evaluated = values | {
        "history": [*values["history"], {"step": 60.0, "eval_accuracy": 0.5, "eval_loss": 0.7}]
    }
    return [whole, *(json.dumps(other).encode() for other in (failed, evaluated))]


def _predictions(folder: Path) -> list[bytes]:
    changed = _runs(folder)
    return [(changed / runs.PREDICTIONS).read_bytes()]


def _compare(folder: Path) -> None:
    compared = comparison.compare(folder / "runs")
    assert any(row.attention == "dense" for group in compared.groups for row in group.rows)
    comparison.render_terminal(compared, Console(file=io.StringIO(), width=200))
    comparison.render_markdown(compared)
    json.dumps(comparison.to_json(compared), allow_nan=False)
    report.document(compared, report.PICTURE).encode()
    report.page(compared).encode()
    report.picture(compared).encode()


def _benches(folder: Path) -> list[bytes]:
    fixture_runs.write_run(folder / "runs", "dense", rows=40)
    return [fixture_runs.write_bench(folder / "bench").read_bytes()]


def _read_bench(folder: Path) -> None:
    found = result.read(folder / "bench" / result.BENCH)
    tables.render_terminal(found, Console(file=io.StringIO()))
    report.page(comparison.compare(folder / "runs"), [found]).encode()


def _encoder(name: str) -> Callable[[Path], list[bytes]]:
    def prepare(folder: Path) -> list[bytes]:
        return [(tiny.encoder(folder / "encoder") / name).read_bytes()]

    return prepare


def _families(folder: Path) -> list[bytes]:
    (folder / "encoder").mkdir()
    return [encoders.config(family).to_json_string(use_diff=False).encode() for family in encoders.FAMILIES]


def _shards(folder: Path) -> list[bytes]:
    tiny.encoder(folder / "encoder")
    model = checkpoints.load(folder / "encoder")
    model.model.save_pretrained(folder / "encoder", max_shard_size="60KB")
    (folder / "encoder" / "model.safetensors").unlink()
    return [(folder / "encoder" / "model.safetensors.index.json").read_bytes()]


def _load(folder: Path) -> object:
    return checkpoints.load(folder / "encoder", "longformer", labels=("a", "b"))


def _inspect(folder: Path) -> object:
    return checkpoints.inspect(folder / "encoder", "longformer")


def _model(name: str) -> Callable[[Path], list[bytes]]:
    def prepare(folder: Path) -> list[bytes]:
        tiny.encoder(folder / "encoder")
        checkpoints.convert(
            folder / "encoder", "longformer", folder / "model", attention_options={"window": 4}
        )
        return [(folder / "model" / name).read_bytes()]

    return prepare


def _classify(folder: Path) -> list[predict.Prediction]:
    return list(predict.Classifier(folder / "model")(["a good film", "\0🙂" * 40]))


def _states(folder: Path) -> list[bytes]:
    (folder / "checkpoint-20").mkdir()
    return [json.dumps({"global_step": 20, "epoch": 1.25, "max_steps": 96, "log_history": []}).encode()]


def _sources(folder: Path) -> list[bytes]:
    (folder / "labels.jsonl").write_text("{}\n")
    return [json.dumps({"model": "m", "texts": "t", "rows": 2}).encode()]


def _resume(folder: Path) -> int:
    return predict._resume(folder / "labels.jsonl", {"model": "m", "texts": "t", "rows": 2})


#: By the name of its corpus, which is what its file is called.
READERS = {
    **{suffix[1:]: _table(suffix) for suffix in files.READERS},
    "run": _yaml(RunSpec, RUN, RunSpec(task="sst2").to_dict()),
    "grid": _yaml(GridSpec, GRID | {"per_task": {"imdb": {"max_length": 1024}}, "bf16": False}),
    "sweep": _yaml(SweepSpec, {"task": "sst2", "attention": "performer", "search": SEARCH, "n_trials": 4}),
    "attention": Reader("attention", lambda folder: [ATTENTION], _read_attention),
    "record": Reader("runs/changed/run.json", _records, _compare),
    "predictions": Reader("runs/changed/predictions.parquet", _predictions, _compare),
    "bench": Reader("bench/bench.json", _benches, _read_bench),
    "config": Reader("encoder/config.json", _encoder("config.json"), _load),
    "family": Reader("encoder/config.json", _families, _inspect),
    "weights": Reader("encoder/model.safetensors", _encoder("model.safetensors"), _load),
    "index": Reader("encoder/model.safetensors.index.json", _shards, _load),
    "model": Reader("model/config.json", _model("config.json"), _classify),
    "tokenizer": Reader("model/tokenizer.json", _model("tokenizer.json"), _classify),
    "tokenizer_config": Reader("model/tokenizer_config.json", _model("tokenizer_config.json"), _classify),
    "state": Reader("checkpoint-20/trainer_state.json", _states, fine_tuning.last_checkpoint),
    "source": Reader(f"labels.jsonl{predict.SOURCE}", _sources, _resume),
}  # fmt: skip


def main() -> None:
    """Let libFuzzer look for an input of a reader that breaks the rule."""
    from bakeoff.logs import quiet

    quiet()
    program, name, *rest = sys.argv
    folder = Path(tempfile.mkdtemp())
    seeds = READERS[name].prepare(folder)
    if all(argument.startswith("-") for argument in rest):
        (folder / "corpus").mkdir()
        rest.append(str(folder / "corpus"))
    first = Path(next(argument for argument in rest if not argument.startswith("-")))
    for number, seed in enumerate(seeds):
        (first / f"valid-{number}").write_bytes(seed)
    limits = [f"-timeout={SECONDS}", f"-malloc_limit_mb={MEMORY >> 20}", "-rss_limit_mb=0"]
    atheris.Setup([program, *limits, *rest], lambda data: READERS[name].holds(folder, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
