"""The run record: the one thing that crosses from running to comparing and reporting.

A run is a folder: `run.json`, `predictions.parquet`, and `model/` when it is kept. Both files are written
under a temporary name and renamed, so a folder holds a whole record or none. A record is never edited;
what a table shows is always rebuilt from the folders. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from bakeoff.errors import BakeoffError, BusyError
from bakeoff.spec import RunSpec

SCHEMA = 3  # 2: transfer; 3: batches
RECORD = "run.json"
PREDICTIONS = "predictions.parquet"
MODEL = "model"

Status = Literal["ok", "failed", "oom", "cancelled", "stopped"]  # stopped: by whoever watched its evaluations


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure on the evaluation split and the direction in which it is better."""

    value: float
    higher_is_better: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """What a split held: rows used of the rows there are, and its lengths in tokens before truncation."""

    rows: int
    rows_available: int
    token_quantiles: Mapping[str, int]  # "0.5", "0.95", "1.0" -> tokens
    share_truncated: float
    label_counts: Mapping[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Which data: `sampled` is True where a split is not the whole official one."""

    task: str
    source: str  # a Hub id with its revision, a file, a package, or a generator with its settings
    fingerprint: str  # SHA-256 over the texts and labels used, in order
    labels: tuple[str, ...]
    max_length: int
    sampled: bool
    splits: Mapping[str, Split]  # "train", "eval"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Which encoder: where it came from, its sizes, and where the attention was put."""

    base: str
    base_sha256: str | None
    family: str
    attention: str
    attention_options: Mapping[str, Any]  # all of them, defaults included
    attention_seed: int | None = None  # of random features and blocks: the run's, or a converted base's own
    layers: int  # attention layers that call the mechanism, a family's own local layers aside
    parameters: int
    trainable_parameters: int
    attention_parameters: int  # in the mechanism's own state
    share_dense: float  # share of evaluation texts so short that nothing is left out or compressed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
    """The stage before fine-tuning in which the mechanisms' state learnt to match dense attention."""

    steps: int
    rows: int  # training texts read, without their labels
    seconds: float  # part of the cost's train_seconds
    history: tuple[Mapping[str, float], ...]  # step, error: relative squared error, mean over layers

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Transfer:
        """Read what `dataclasses.asdict` gave."""
        return typing.cast(Transfer, from_plain(cls, values, "transfer"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What the run took: seconds of wall time; the process's peak resident set, or the device's peak."""

    train_seconds: float
    train_tokens_per_second: float
    train_examples_per_second: float
    eval_seconds: float
    eval_tokens_per_second: float
    eval_examples_per_second: float
    peak_memory_bytes: int
    attention_flops_per_eval_token: float  # from the mechanism's cost formula at the mean evaluation length
    how: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything known of a run. Failed runs have `error`, and None for what they never reached."""

    id: str
    status: Status
    digest: str
    spec: Mapping[str, Any]  # resolved: no field is left to a default
    started: str  # ISO 8601, UTC
    seconds: float
    environment: Mapping[str, Any]  # versions, git sha, dirty, device, threads, dtype
    error: str | None = None
    model: Model | None = None
    data: Data | None = None
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=dict)  # on eval: accuracy, f1, loss
    train_loss: float | None = None
    cost: Cost | None = None
    transfer: Transfer | None = None  # None: the recipe has no such stage, or the mechanism nothing to learn
    # As the spec names them, where memory did not allow what it asks for: smaller ones, more of them a step.
    batches: Mapping[str, int] = dataclasses.field(default_factory=dict)
    history: tuple[Mapping[str, float], ...] = ()  # as Trainer logs: step, epoch, and loss or eval_accuracy …
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunRecord:
        """Read a record of any released schema."""
        schema = values.get("schema")
        if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
            raise BakeoffError(
                f"run record schema {schema!r} is unknown here (newest known: {SCHEMA}); update bakeoff."
            )
        return typing.cast(RunRecord, from_plain(cls, values, "record"))


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path, which becomes `path` at the end: whatever happens, a whole file or none is there.

    Raises:
        BakeoffError: it cannot be written, as on a full disk.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # a link there would lead the writing elsewhere
        yield temporary
        temporary.replace(path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise BakeoffError(
            f"cannot write {path} ({reason}); make room there, or name another folder, and start again: what "
            "is finished is kept."
        ) from None


def write_json(path: Path, values: Any) -> None:
    """Write `values` so that a crash leaves the old file or the new one, never a part."""
    with whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def write_texts(folder: Path, contents: Mapping[str, str]) -> list[Path]:
    """Write texts by their file names into a folder, made if need be, each whole; returns their paths."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BakeoffError(
            f"cannot write to {folder} ({error.strerror}); choose another --output-dir."
        ) from None
    for name, text in contents.items():
        with whole(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / name for name in contents]


def save(folder: Path, record: RunRecord) -> None:
    """Write the record; an earlier attempt that did not end well is kept beside it as `run.<n>.json`."""
    path = folder / RECORD
    refuse_links(folder)
    if path.exists():
        earlier = (folder / f"run.{number}.json" for number in itertools.count(1))
        path.replace(next(free for free in earlier if not os.path.lexists(free)))
    write_json(path, record.to_dict())


def load(folder: Path) -> RunRecord:
    """The record in `folder`."""
    path = folder / RECORD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BakeoffError(f"{folder} holds no run ({RECORD} is missing).") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BakeoffError(f"{path}: not a run record ({error}); move it away to run it again.") from None
    try:
        if not isinstance(values, dict):
            raise BakeoffError("a record is a JSON object.")
        return RunRecord.from_dict(values)
    except BakeoffError as error:
        raise BakeoffError(f"{path}: {error}") from None


def finished(spec: RunSpec) -> RunRecord | None:
    """The record of this very run, if it was made and ended well."""
    output = Path(spec.output_dir)
    if (output / RECORD).exists():
        raise BakeoffError(f"{output} holds a run itself; name the folder that holds it, or another.")
    folder = output / spec.run_id()
    if not (folder / RECORD).exists():
        return None
    record = load(folder)
    if record.digest != spec.digest():
        raise BakeoffError(f"{folder} holds another run; choose another --output-dir.")
    return record if record.status == "ok" and (folder / PREDICTIONS).exists() else None


def refuse_links(*paths: Path) -> None:
    """Raise a `BakeoffError` where a path, or anything below it, is a symbolic link.

    A folder of runs may be a stranger's. What is written and deleted there must not be elsewhere.
    """
    for path in paths:
        below = (Path(at, name) for at, folders, files in os.walk(path) for name in (*folders, *files))
        for found in (path, *below):
            if found.is_symlink():
                raise BakeoffError(
                    f"{found} is a symbolic link, through which a run would write elsewhere; remove it, or "
                    "choose another --output-dir."
                )


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a run's folder, made if need be, for this process, until it ends.

    Raises:
        BusyError: another process holds it.
        BakeoffError: there is a symbolic link in it, or it cannot be written to.
    """
    refuse_links(folder)
    held = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(exist_ok=True)
        held.acquire()
    except Timeout:
        raise BusyError(f"{folder} is being made by another process.") from None
    except OSError as error:
        raise BakeoffError(
            f"cannot write to {folder} ({error.strerror}); mend that, or choose another --output-dir."
        ) from None
    try:
        yield
    finally:
        held.release()


def find(root: Path) -> Iterator[tuple[Path, RunRecord | BakeoffError]]:
    """Every run below `root` (or `root` itself), by folder name; what cannot be read as its error.

    Links to folders are followed, each folder once.
    """
    if not root.is_dir():
        raise BakeoffError(f"no such folder: {root}.")
    unlisted: dict[Path, BakeoffError] = {}

    def note(error: OSError) -> None:
        path = Path(error.filename)
        unlisted[path] = BakeoffError(f"{path}: cannot be listed ({error.strerror}); mend that, or move it.")

    found, seen = [], set()
    for at, folders, files in os.walk(root, onerror=note, followlinks=True):
        if (real := os.path.realpath(at)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort(
            key=lambda name: (os.path.islink(os.path.join(at, name)), name)
        )  # to each itself, if it can be
        if RECORD in files:
            found.append(Path(at))
    for folder in sorted([*found, *unlisted]):
        if (hidden := unlisted.get(folder)) is not None:
            yield folder, hidden
            continue
        try:
            yield folder, load(folder)
        except BakeoffError as error:
            yield folder, error


def encoded_folder(spec: RunSpec) -> Path:
    """Where a study's runs share their token ids; it may be deleted at any time."""
    folder = Path(spec.output_dir) / ".encoded"
    refuse_links(folder)
    return folder


def output_folder(spec: RunSpec) -> Path:
    """The folder that holds the runs, made if need be. Raises `BakeoffError` where it cannot be."""
    output = Path(spec.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BakeoffError(f"cannot make {output} ({error.strerror}); choose another --output-dir.") from None
    if not os.access(output, os.W_OK):
        raise BakeoffError(f"cannot write to {output}; choose another --output-dir.")
    return output


@dataclasses.dataclass(frozen=True)
class Predictions:
    """One evaluation, row by row: with it every metric is computed anew and runs are compared in pairs."""

    ids: list[int]  # row numbers in the source split, so that samples pair up
    labels: list[int]
    logits: list[list[float]]
    tokens: list[int]  # before truncation
    texts: list[str]  # the beginning of each text, for showing where mechanisms disagree

    def save(self, folder: Path) -> None:
        """Write `predictions.parquet` whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with whole(folder / PREDICTIONS) as temporary:
            pq.write_table(pa.table(dataclasses.asdict(self)), temporary, compression="zstd")

    @classmethod
    def load(cls, folder: Path) -> Predictions:
        """The predictions beside a record."""
        import pyarrow.parquet as pq

        path = folder / PREDICTIONS
        try:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                return cls(**file.read(use_threads=False).to_pydict())
        except FileNotFoundError:
            raise BakeoffError(
                f"{folder} holds no {PREDICTIONS}; run it again to have it compared."
            ) from None
        except Exception as error:  # what pyarrow raises of a damaged file is open-ended
            raise BakeoffError(f"{path}: not readable as predictions ({error}).") from None


def from_plain(hint: Any, value: Any, where: str) -> Any:
    """What `hint` names, such as a dataclass, from plain JSON values, strictly.

    Raises:
        BakeoffError: a field is unknown, missing or of another type; `where` says which.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise BakeoffError(f"{where} must be an object.")
        hints = typing.get_type_hints(hint)
        if unknown := value.keys() - hints.keys():
            raise BakeoffError(f"{where} has unknown fields: {', '.join(sorted(map(str, unknown)))}.")
        read = {k: from_plain(hints[k], v, f"{where}.{k}") for k, v in value.items()}
        needed = [
            field.name
            for field in dataclasses.fields(hint)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
        if missing := [name for name in needed if name not in value]:
            raise BakeoffError(f"{where} lacks {', '.join(missing)}.")
        return hint(**read)
    if type(None) in args:
        inner = next(a for a in args if a is not type(None))
        return None if value is None else from_plain(inner, value, where)
    if origin is Mapping and isinstance(value, dict):
        return {k: from_plain(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin is tuple and isinstance(value, list):
        return tuple(from_plain(args[0], v, where) for v in value)
    if origin is Literal:
        if value not in args:
            raise BakeoffError(f"{where} must be one of {', '.join(args)}, not {value!r}.")
        return value
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise BakeoffError(f"{where} is too large a number.") from None
    if isinstance(hint, type) and isinstance(value, hint):
        if isinstance(value, int) and abs(value) >= 2**63:
            raise BakeoffError(f"{where} is too large a number.")
        return value
    raise BakeoffError(f"{where} has the wrong type: {value!r}.")
