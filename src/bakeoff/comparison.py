"""Compare the runs below a folder: one table a task, with intervals, paired tests and a plain verdict.

Runs are set side by side only where they were evaluated on the very same rows: a task evaluated on two sets
of rows becomes two groups. Within a group a row is one attention with its settings, averaged over seeds.
Nothing is dropped in silence: what failed, cannot be read, or was superseded is listed with the reason.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff import metrics, runs, stats, verdict
from bakeoff.errors import BakeoffError
from bakeoff.runs import Cost, Data, Model, Predictions, RunRecord
from bakeoff.spec import NOT_IDENTITY, AttentionSpec
from bakeoff.verdict import p_text, percent

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run that ended well, with its predictions at hand."""

    record: RunRecord
    model: Model
    data: Data
    cost: Cost
    predictions: Predictions

    @functools.cached_property
    def labels(self) -> NDArray[np.int64]:
        """True classes, shape (n,)."""
        return np.asarray(self.predictions.labels, dtype=np.int64)

    @functools.cached_property
    def logits(self) -> NDArray[np.float64]:
        """Shape (n, classes)."""
        return np.asarray(self.predictions.logits, dtype=np.float64)

    @functools.cached_property
    def predicted(self) -> NDArray[np.int64]:
        """Answered classes, shape (n,)."""
        return metrics.predicted(self.logits)

    @functools.cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Shape (n, classes)."""
        return metrics.probabilities(self.logits)

    @functools.cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Which rows were answered right, shape (n,)."""
        return self.predicted == self.labels

    @property
    def seed(self) -> int:
        """The seed it was trained with."""
        return int(self.record.spec.get("seed", 0))

    @property
    def machine(self) -> tuple[Any, ...]:
        """What must be equal for two runs' seconds to be comparable."""
        return tuple(self.record.environment.get(key) for key in ("device", "threads", "dtype"))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A share on the evaluation rows with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One attention with its settings: means over `runs`, which differ in their seed alone."""

    label: str
    attention: str
    runs: tuple[Run, ...]
    accuracy: Estimate
    f1: Estimate | None
    train_loss: float
    train_seconds: float
    train_tokens_per_second: float
    eval_seconds: float
    eval_tokens_per_second: float
    peak_memory_bytes: int
    parameters: int
    attention_parameters: int
    share_truncated: float
    share_dense: float
    fault: str | None  # "learned nothing: …" with the likely cause, where that is so
    to_best: stats.Difference | None = None  # best minus this, p adjusted by Holm; None for the best itself

    @property
    def title(self) -> str:
        """The label, with the one remark that no table may lack."""
        return f"{self.label} (did not learn)" if self.fault else self.label

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Right answers, shape (seeds, n)."""
        return np.stack([run.correct for run in self.runs])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """A task on one set of evaluation rows; `rows` from the most to the least accurate."""

    name: str
    evaluated: str  # how many rows, and of which whole
    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    majority: str  # the commonest label
    baseline: float  # the accuracy of always answering it
    n: int
    resolvable: float | None  # the smallest accuracy difference that could be shown here
    same_machine: bool  # whether seconds may be compared
    notes: tuple[str, ...] = ()
    verdict: tuple[str, ...] = ()

    @property
    def best(self) -> Row:
        """The most accurate row of those that learned anything."""
        return next(row for row in self.rows if row.to_best is None)


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that cannot stand in a table, and why."""

    id: str
    task: str
    attention: str
    status: str
    error: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All that was found: a group for each task and set of rows, the failures, and remarks on the whole."""

    groups: tuple[Group, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]


def compare(root: Path | Sequence[Path]) -> Comparison:
    """Read every run below `root` (a folder or several) and compare those that can be compared."""
    roots = [Path(root)] if isinstance(root, str | Path) else [Path(path) for path in root]
    found = {folder.resolve(): read for path in roots for folder, read in runs.find(path)}
    if not found:
        where = ", ".join(map(str, roots))
        raise BakeoffError(
            f"no runs below {where}; make one with `bakeoff run`, or name the folder they are in."
        )
    good: dict[str, list[Run]] = {}
    failures = []
    for folder, read in found.items():
        outcome = _usable(folder, read)
        if isinstance(outcome, Run):
            good.setdefault(_evaluation_key(outcome), []).append(outcome)
        else:
            failures.append(outcome)
    groups = sorted((_group(members, failures) for members in good.values()), key=lambda g: (g.name, -g.n))
    notes = [
        f"{name} was evaluated on {count} different sets of rows; each has its own table, "
        "and figures must not be compared between them."
        for name, count in Counter(group.name for group in groups).items()
        if count > 1
    ]
    return Comparison(tuple(groups), tuple(failures), tuple(notes))


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Plain values: shares as fractions, seconds, bytes; figures that are not finite become None."""

    def row_values(row: Row) -> dict[str, Any]:
        values = {f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.name != "runs"}
        values["accuracy"] = dataclasses.asdict(row.accuracy)
        values["f1"] = dataclasses.asdict(row.f1) if row.f1 else None
        values["to_best"] = row.to_best._asdict() if row.to_best else None
        values["seeds"] = [run.seed for run in row.runs]
        values["run_ids"] = [run.record.id for run in row.runs]
        return values

    def group_values(group: Group) -> dict[str, Any]:
        values = {f.name: getattr(group, f.name) for f in dataclasses.fields(group)}
        return {**values, "rows": [row_values(row) for row in group.rows]}

    return _finite(
        {
            "groups": [group_values(group) for group in comparison.groups],
            "failures": [dataclasses.asdict(failure) for failure in comparison.failures],
            "notes": comparison.notes,
        }
    )


# --- tables ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure of a row: its heading, its text, the number to sort by, and what it means."""

    title: str
    text: Callable[[Row], str]
    number: Callable[[Row], float | None]
    meaning: str
    cost: bool = False  # in the second table, where there are two


def columns(group: Group) -> list[Column]:
    """The columns a group needs; F1 only where the task has it."""
    return [c for c in COLUMNS if c.title != "F1 %" or any(row.f1 for row in group.rows)]


def render_terminal(comparison: Comparison, console: Console) -> None:
    """Print the tables and verdicts. Nothing read from a record is taken for markup."""
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    for group in comparison.groups:
        console.print(f"\n[bold]{escape(group.name)}[/bold]  {escape(group.evaluated)}")
        for cost in (False, True):
            table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
            table.add_column("attention", overflow="fold")
            chosen = [column for column in columns(group) if column.cost is cost]
            for column in chosen:
                table.add_column(column.title, justify="right", no_wrap=True)
            for row in group.rows:
                table.add_row(escape(row.title), *(escape(column.text(row)) for column in chosen))
            if not cost:
                share = {"eval accuracy %": percent(group.baseline)}
                cells = (share.get(column.title, "–") for column in chosen)
                table.add_row(escape(_baseline_label(group)), *cells, style="dim")
            console.print(Padding(table, (1, 0, 0, 0)))
        console.print()
        for sentence in (*group.verdict, *group.notes):
            console.print(f"• {escape(sentence)}", highlight=False)
    if comparison.failures:
        console.print("\n[bold]Not in the tables[/bold]")
        for failure in comparison.failures:
            console.print(escape(f"• {failure.id}: {failure.status}. {failure.error}"), highlight=False)
    for note in comparison.notes:
        console.print(f"\n{escape(note)}", highlight=False)


def render_markdown(comparison: Comparison) -> str:
    """The tables and verdicts as Markdown; nothing read from a record is taken for markup."""
    parts = []
    for group in comparison.groups:
        parts.append(f"## {markdown_escape(group.name)}\n\n{markdown_escape(group.evaluated)}")
        parts.append(_bullets((*group.verdict, *group.notes)))
        for cost in (False, True):
            chosen = [column for column in columns(group) if column.cost is cost]
            lines = [["attention", *(column.title for column in chosen)]]
            lines += [[row.title, *(column.text(row) for column in chosen)] for row in group.rows]
            if not cost:
                share = {"eval accuracy %": percent(group.baseline)}
                lines.append([_baseline_label(group), *(share.get(column.title, "–") for column in chosen)])
            parts.append(_markdown_table(lines))
    if comparison.failures:
        parts.append("## Not in the tables")
        parts.append(_bullets(f"{f.id}: {f.status}. {f.error}" for f in comparison.failures))
    if comparison.notes:
        parts.append(_bullets(comparison.notes))
    return "\n\n".join(parts) + "\n"


def markdown_escape(text: str) -> str:
    """`text` as literal Markdown: no emphasis, link, HTML, table cell or code comes out of it."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#~&" else c for c in text)


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {markdown_escape(sentence)}" for sentence in sentences)


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    cells = [[markdown_escape(cell) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]

    def text(line: Sequence[str]) -> str:
        padded = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (w + 1)}:|" for w in widths[1:])
    return "\n".join([text(cells[0]), rule, *map(text, cells[1:])])


def _baseline_label(group: Group) -> str:
    return f"always '{group.majority}'"


def _interval_text(estimate: Estimate) -> str:
    return f"{percent(estimate.value)} ± {percent((estimate.high - estimate.low) / 2)}"


def _best_text(row: Row) -> str:
    return p_text(row.to_best.p) if row.to_best else "best"


#: Every figure the tables show, in their order. The first four are those of the original study.
COLUMNS: tuple[Column, ...] = (
    Column(
        "train loss",
        lambda r: f"{r.train_loss:.3f}",
        lambda r: r.train_loss if math.isfinite(r.train_loss) else None,
        "mean cross-entropy over all of training",
    ),
    Column(
        "train s", lambda r: f"{r.train_seconds:,.1f}", lambda r: r.train_seconds, "wall time of training"
    ),
    Column(
        "eval accuracy %",
        lambda r: _interval_text(r.accuracy),
        lambda r: r.accuracy.value,
        "share of evaluation rows answered right, with half of its 95 % interval",
    ),
    Column("eval s", lambda r: f"{r.eval_seconds:,.1f}", lambda r: r.eval_seconds, "wall time of evaluation"),
    Column(
        "F1 %",
        lambda r: _interval_text(r.f1) if r.f1 else "–",
        lambda r: r.f1.value if r.f1 else None,
        "F1 of label 1 for two classes, else the mean over classes, with half of its 95 % interval",
    ),
    Column(
        "p",
        _best_text,
        lambda r: r.to_best.p if r.to_best else None,
        "of being as accurate as the best: a paired test on the same rows, adjusted by Holm's method",
    ),
    Column("seeds", lambda r: str(len(r.runs)), lambda r: len(r.runs), "runs averaged, one a seed"),
    Column(
        "parameters",
        lambda r: f"{r.parameters / 1e6:,.2f} M",
        lambda r: r.parameters,
        "all of the model's",
        cost=True,
    ),
    Column(
        "of attention",
        lambda r: f"{r.attention_parameters / 1e6:,.2f} M",
        lambda r: r.attention_parameters,
        "those that the mechanism adds to the encoder",
        cost=True,
    ),
    Column(
        "train tokens/s",
        lambda r: f"{r.train_tokens_per_second:,.0f}",
        lambda r: r.train_tokens_per_second,
        "tokens trained on in a second",
        cost=True,
    ),
    Column(
        "eval tokens/s",
        lambda r: f"{r.eval_tokens_per_second:,.0f}",
        lambda r: r.eval_tokens_per_second,
        "tokens evaluated in a second",
        cost=True,
    ),
    Column(
        "peak memory",
        lambda r: f"{r.peak_memory_bytes / 2**20:,.0f} MiB",
        lambda r: r.peak_memory_bytes,
        "of the process, or of the device where there is one; the largest over seeds",
        cost=True,
    ),
    Column(
        "cut %",
        lambda r: percent(r.share_truncated),
        lambda r: r.share_truncated,
        "share of evaluation texts longer than the longest length taken",
        cost=True,
    ),
    Column(
        "as dense %",
        lambda r: percent(r.share_dense),
        lambda r: r.share_dense,
        "share of evaluation texts so short that the mechanism leaves nothing out and compresses nothing",
        cost=True,
    ),
)


# --- reading and grouping -------------------------------------------------------------------------------


def _usable(folder: Path, record: RunRecord | BakeoffError) -> Run | Failure:
    """The run with its predictions, or the reason why it cannot be compared."""
    if isinstance(record, BakeoffError):
        return Failure(plain(folder.name), "?", "?", "unreadable", plain(str(record)))

    def failure(status: str, error: str) -> Failure:
        attention = str(AttentionSpec.parse(record.spec.get("attention") or "?"))
        return Failure(*(plain(t) for t in (record.id, _task_name(record), attention, status, error)))

    if record.status != "ok":
        return failure(record.status, record.error or "no reason was recorded")
    if record.model is None or record.data is None or record.cost is None:
        return failure("incomplete", "the record lacks its model, data or cost; run it again")
    try:
        predictions = Predictions.load(folder)
    except BakeoffError as error:
        return failure("no predictions", str(error))
    if problem := _problem(predictions, len(record.data.labels)):
        return failure("unusable", f"{runs.PREDICTIONS}: {problem}; run it again")
    return Run(record, record.model, record.data, record.cost, predictions)


def _problem(predictions: Predictions, classes: int) -> str | None:
    n = len(predictions.labels)
    if n == 0:
        return "no rows"
    if any(len(column) != n for column in vars(predictions).values()):
        return "columns of different lengths"
    try:
        labels, logits = np.asarray(predictions.labels), np.asarray(predictions.logits, dtype=float)
    except (TypeError, ValueError):
        return "logits that are no table of numbers"
    if logits.shape != (n, classes):
        return f"logits that do not number {classes}, one a label"
    if labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= classes:
        return f"labels outside 0 to {classes - 1}"
    return None


def _task_name(record: RunRecord) -> str:
    if record.data is not None:
        return record.data.task
    return str(record.spec.get("task") or Path(str(record.spec.get("train_file"))).stem)


def _evaluation_key(run: Run) -> str:
    """Equal for runs that were asked the very same questions."""
    p = run.predictions
    asked = [run.data.task, run.data.labels, p.ids, p.labels, p.texts]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _settings(run: Run) -> dict[tuple[str, str], str]:
    """What tells rows apart: the attention's options, the data, and every field that decides a result.

    The seed does not. Keys are ("attention", option) and ("run", field), which sort in that order.
    """
    spec = run.record.spec
    options = AttentionSpec.parse(spec.get("attention") or run.model.attention).options
    fields = {k: v for k, v in spec.items() if k not in {*NOT_IDENTITY, "seed", "attention"}}
    values = {("run", k): v for k, v in {"data": run.data.fingerprint[:8], **fields}.items()}
    return {
        key: json.dumps(v)
        for key, v in {**values, **{("attention", k): v for k, v in options.items()}}.items()
    }


def _group(members: Sequence[Run], failures: Sequence[Failure]) -> Group:
    """The table and the verdict of runs that share their evaluation rows."""
    first = members[0]
    majority, baseline = metrics.majority_baseline(first.labels)
    by_settings: dict[tuple[Any, ...], dict[int, Run]] = {}
    notes = []
    for run in sorted(members, key=lambda run: run.record.started):
        seeds = by_settings.setdefault((run.model.attention, *sorted(_settings(run).items())), {})
        if run.seed in seeds:
            notes.append(
                f"{plain(seeds[run.seed].record.id)} is left out: a later run has the same settings and seed."
            )
        seeds[run.seed] = run
    kept = [tuple(seeds.values()) for seeds in by_settings.values()]
    rows = _tested([_row(label, seeds, baseline) for label, seeds in zip(_labels(kept), kept, strict=True)])
    if len({run.data.fingerprint for seeds in kept for run in seeds}) > 1:
        notes.append("These runs share their evaluation rows but were not all trained on the same rows.")
    group = Group(
        name=plain(first.data.task),
        evaluated=_evaluated(first.data, len(first.labels)),
        labels=tuple(plain(label) for label in first.data.labels),
        rows=tuple(rows),
        majority=plain(first.data.labels[majority]),
        baseline=baseline,
        n=len(first.labels),
        resolvable=_resolvable(rows),
        same_machine=len({run.machine for seeds in kept for run in seeds}) == 1,
        notes=tuple(notes),
    )
    missing = [failure for failure in failures if failure.task == group.name]
    return dataclasses.replace(group, verdict=verdict.sentences(group, missing))


def _labels(rows: Sequence[Sequence[Run]]) -> list[str]:
    """A name a row: the attention, and whichever settings tell it from the other rows."""
    named = [(seeds[0].model.attention, _settings(seeds[0])) for seeds in rows]
    labels = []
    for name, mine in named:
        peers = {
            "attention": [other for peer, other in named if peer == name],
            "run": [other for _, other in named],
        }
        different = [
            f"{key[1]}={_unquote(mine.get(key, 'null'))}"
            for key in sorted({key for _, other in named for key in other})
            if len({other.get(key) for other in peers[key[0]]}) > 1
        ]
        labels.append(plain(f"{name} ({', '.join(different)})" if different else name))
    return labels


def _row(label: str, seeds: tuple[Run, ...], baseline: float) -> Row:
    def mean(figure: Callable[[Run], float]) -> float:
        return statistics.fmean(figure(run) for run in seeds)

    model = seeds[0].model
    faults = [fault for run in seeds if (fault := verdict.fault(run, baseline))]
    where = "" if len(faults) == len(seeds) else f" in {len(faults)} of {len(seeds)} seeds"
    return Row(
        label=label,
        attention=plain(model.attention),
        runs=seeds,
        accuracy=_accuracy(seeds),
        f1=_f1(seeds) if "f1" in seeds[0].record.metrics else None,
        train_loss=mean(lambda run: math.nan if run.record.train_loss is None else run.record.train_loss),
        train_seconds=mean(lambda run: run.cost.train_seconds),
        train_tokens_per_second=mean(lambda run: run.cost.train_tokens_per_second),
        eval_seconds=mean(lambda run: run.cost.eval_seconds),
        eval_tokens_per_second=mean(lambda run: run.cost.eval_tokens_per_second),
        peak_memory_bytes=max(run.cost.peak_memory_bytes for run in seeds),
        parameters=model.parameters,
        attention_parameters=model.attention_parameters,
        share_truncated=mean(lambda run: run.data.splits["eval"].share_truncated),
        share_dense=mean(lambda run: run.model.share_dense),
        fault=f"learned nothing{where}: {plain(faults[0])}" if faults else None,
    )


def _accuracy(seeds: Sequence[Run]) -> Estimate:
    values = [float(run.correct.mean()) for run in seeds]
    intervals = [stats.accuracy_interval(int(run.correct.sum()), len(run.correct)) for run in seeds]
    return Estimate(statistics.fmean(values), *stats.over_seeds(values, intervals))


def _f1(seeds: Sequence[Run]) -> Estimate:
    counts = [metrics.confusion(run.labels, run.predicted, run.logits.shape[1]) for run in seeds]
    values = [float(metrics.f1_of_confusion(c)) for c in counts]
    intervals = [stats.bootstrap_interval(metrics.f1_of_confusion, c) for c in counts]
    return Estimate(statistics.fmean(values), *stats.over_seeds(values, intervals))


def _tested(rows: Sequence[Row]) -> list[Row]:
    """The rows from best to worst, each tested against the best of those that learned (or of all)."""
    ranked = sorted(rows, key=lambda row: (-row.accuracy.value, row.train_seconds))
    best = next((row for row in ranked if row.fault is None), ranked[0])
    others = [row for row in ranked if row is not best]
    differences = [stats.paired_difference(best.correct, row.correct) for row in others]
    adjusted = stats.holm([difference.p for difference in differences])
    for row, difference, p in zip(others, differences, adjusted, strict=True):
        ranked[ranked.index(row)] = dataclasses.replace(row, to_best=difference._replace(p=p))
    return ranked


def _resolvable(rows: Sequence[Row]) -> float | None:
    """The smallest difference these rows and seeds could show, by the comparisons of rows that learned."""
    found = [stats.smallest_difference(row.to_best) for row in rows if row.to_best and not row.fault]
    return statistics.fmean(found) if found else None


def _evaluated(data: Data, n: int) -> str:
    available = data.splits["eval"].rows_available
    if n < available:
        return f"evaluated on a sample of {n:,} of {available:,} rows"
    if data.sampled:
        return f"evaluated on {n:,} rows; training or evaluation rows are a sample of the official split"
    return f"evaluated on all {n:,} rows"


def plain(text: str) -> str:
    """One line without control characters, whatever a record holds."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _unquote(value: str) -> str:
    return value[1:-1] if value.startswith('"') else value


def _finite(values: Any) -> Any:
    """JSON values: tuples as lists, and None for figures that are not finite."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
