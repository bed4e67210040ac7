"""A comparison for the terminal, as Markdown and as JSON; `COLUMNS` is what the tables show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bakeoff.comparison.rows import Comparison, Estimate, Group, Row
from bakeoff.metrics import METRICS
from bakeoff.text import markdown_escape, p_text, percent, plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_NONE = "–"  # a figure that there is not


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure of a row: its heading, its text, the number to sort by, and what it means."""

    title: str
    text: Callable[[Row], str]
    number: Callable[[Row], float | None]
    meaning: str
    cost: bool = False  # in the second table, where there are two
    optional: bool = False  # left out where no row has a number
    baseline: Callable[[Group], str] = lambda group: _NONE  # of always answering the commonest label


def columns(group: Group) -> list[Column]:
    """The columns a group needs: a metric where the task has it, transfer where a run had it."""
    return [
        column
        for column in COLUMNS
        if not column.optional or any(column.number(row) is not None for row in group.rows)
    ]


def render_terminal(comparison: Comparison, console: Console) -> None:
    """Print the tables and verdicts. Nothing read from a record is taken for markup."""
    from rich.markup import escape
    from rich.padding import Padding

    for group in comparison.groups:
        console.print(f"\n[bold]{escape(group.name)}[/bold]  {escape(group.evaluated)}")
        for lines in filter(None, _lines(group).values()):
            for part in _fitting(group, lines, console):
                console.print(Padding(part, (1, 0, 0, 0)))
        console.print()
        for sentence in (*group.verdict, *group.notes):
            console.print(f"• {escape(sentence)}", highlight=False)
    if comparison.failures:
        console.print("\n[bold]Not in the tables[/bold]")
        for failure in comparison.failures:
            console.print(escape(f"• {failure.id}: {failure.status}. {failure.error}"), highlight=False)
    for note in comparison.notes:
        console.print(f"\n{escape(note)}", highlight=False)


def _fitting(group: Group, lines: Sequence[Sequence[str]], console: Console) -> Iterator[Table]:
    """A table, or several: as many columns each as the terminal is wide."""
    unbounded, first = console.options.update(max_width=10_000), 1
    while first < len(lines[0]):
        for end in range(len(lines[0]), first, -1):
            table = _table(group, [[line[0], *line[first:end]] for line in lines])
            if console.measure(table, options=unbounded).maximum <= console.width:
                break
        yield table
        first = end


def _table(group: Group, lines: Sequence[Sequence[str]]) -> Table:
    """A terminal's table; long names of rows are folded, figures never."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(lines[0][0], max_width=36, overflow="fold")
    for heading in lines[0][1:]:
        table.add_column(escape(heading), justify="right", no_wrap=True)
    for line in lines[1:]:
        baseline = line[0] == _baseline_label(group)
        if not baseline or any(cell != _NONE for cell in line[1:]):
            table.add_row(*map(escape, line), style="dim" if baseline else None)
    return table


def _lines(group: Group) -> dict[str, list[list[str]]]:
    """The tables by name, in their order, headings first; empty where the group has nothing for one."""
    accuracy, cost = _figures(group, cost=False), _figures(group, cost=True)
    baseline = (column.baseline(group) for column in columns(group) if not column.cost)
    return {
        "accuracy": [*accuracy, [_baseline_label(group), *baseline]],
        "seeds": by_seed(group),
        "cost": cost,
        "length": _by_length(group),
    }


def _figures(group: Group, cost: bool) -> list[list[str]]:
    chosen = [column for column in columns(group) if column.cost is cost]
    lines = [["attention", *(column.title for column in chosen)]]
    return lines + [[row.title, *(column.text(row) for column in chosen)] for row in group.rows]


def by_seed(group: Group) -> list[list[str]]:
    """Accuracy of each seed, and how far behind the best with its 95 % interval; none where all have one."""
    seeds = sorted({run.seed for row in group.rows for run in row.runs})
    if len(seeds) == 1:
        return []
    lines = [["accuracy % by seed", *map(str, seeds), "points behind the best"]]
    for row in group.rows:
        found = {run.seed: percent(float(run.correct.mean())) for run in row.runs}
        behind = _NONE
        if row.to_best:
            value, low, high = map(percent, row.to_best[:3])
            behind = f"{value} ({low} to {high})"
        lines.append([row.title, *(found.get(seed, _NONE) for seed in seeds), behind])
    return lines


def _by_length(group: Group) -> list[list[str]]:
    """Accuracy in each quartile of length; none where all texts are about as long."""
    if not group.lengths:
        return []
    lines = [["accuracy % by tokens", *group.lengths]]
    return lines + [[row.title, *map(_interval_text, row.by_length)] for row in group.rows]


def render_markdown(comparison: Comparison) -> str:
    """The tables and verdicts as Markdown; nothing read from a record is taken for markup."""
    parts = []
    for group in comparison.groups:
        parts += [f"## {markdown_escape(group.name)}", *filter(None, markdown_parts(group).values())]
    if comparison.failures:
        parts.append("## Not in the tables")
        parts.append(_bullets(f"{f.id}: {f.status}. {f.error}" for f in comparison.failures))
    if comparison.notes:
        parts.append(_bullets(comparison.notes))
    return "\n\n".join(parts) + "\n"


def markdown_parts(group: Group) -> dict[str, str]:
    """What Markdown says of a group, by name, in its order: evaluated, verdict, and the tables."""
    parts = {
        "evaluated": markdown_escape(group.evaluated),
        "verdict": _bullets((*group.verdict, *group.notes)),
    }
    return parts | {name: _markdown_table(lines) if lines else "" for name, lines in _lines(group).items()}


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


def _measured(name: str) -> Column:
    """The column of a metric."""
    measure = METRICS[name]
    return Column(
        str(measure.title),
        lambda r: _interval_text(r.metrics[name]) if name in r.metrics else _NONE,
        lambda r: r.metrics[name].value if name in r.metrics else None,
        f"{measure.meaning}, with half of its 95 % interval",
        optional=True,
    )


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
    dataclasses.replace(_measured("accuracy"), baseline=lambda group: percent(group.baseline)),
    Column("eval s", lambda r: f"{r.eval_seconds:,.1f}", lambda r: r.eval_seconds, "wall time of evaluation"),
    *(_measured(name) for name, measure in METRICS.items() if measure.title and name != "accuracy"),
    Column(
        "ECE %",
        lambda r: percent(r.calibration_error) if math.isfinite(r.calibration_error) else _NONE,
        lambda r: r.calibration_error if math.isfinite(r.calibration_error) else None,
        "expected calibration error: how far confidence is from accuracy, in the mean over 15 bins",
    ),
    Column(
        "p",
        _best_text,
        lambda r: r.to_best.p if r.to_best else None,
        "how often one as accurate as the best would be this far from it: a paired test on the same rows, "
        "adjusted by Holm's method",
    ),
    Column("seeds", lambda r: str(len(r.runs)), lambda r: len(r.runs), "runs averaged, one a seed"),
    Column(
        "transfer s",
        lambda r: f"{r.transfer_seconds:,.1f}" if r.transfer_seconds else _NONE,
        lambda r: r.transfer_seconds or None,
        "part of the training time in which the mechanism's own state learnt to match dense attention",
        cost=True,
        optional=True,
    ),
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


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Plain values: shares as fractions, seconds, bytes; figures that are not finite become None."""

    def row_values(row: Row) -> dict[str, Any]:
        values = {f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.name != "runs"}
        values["seeds"] = [run.seed for run in row.runs]
        values["run_ids"] = [plain(run.record.id) for run in row.runs]
        return values

    def group_values(group: Group) -> dict[str, Any]:
        values = {f.name: getattr(group, f.name) for f in dataclasses.fields(group)}
        return {**values, "rows": [row_values(row) for row in group.rows]}

    return finite(
        {
            "groups": [group_values(group) for group in comparison.groups],
            "failures": comparison.failures,
            "notes": comparison.notes,
        }
    )


def finite(values: Any) -> Any:
    """JSON values: dataclasses and named tuples by name, and None for figures that are not finite."""
    if dataclasses.is_dataclass(values):
        values = vars(values)
    elif hasattr(values, "_asdict"):
        values = values._asdict()
    if isinstance(values, dict):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
