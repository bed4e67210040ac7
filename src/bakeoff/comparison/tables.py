"""A comparison for the terminal, as Markdown and as JSON; `COLUMNS` is what the tables show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from bakeoff.comparison.rows import Comparison, Estimate, Group, Row
from bakeoff.comparison.text import markdown_escape, p_text, percent, plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure of a row: its heading, its text, the number to sort by, and what it means."""

    title: str
    text: Callable[[Row], str]
    number: Callable[[Row], float | None]
    meaning: str
    cost: bool = False  # in the second table, where there are two


def columns(group: Group) -> list[Column]:
    """The columns a group needs: F1 where the task has it, transfer where a run had it."""
    spare = set()
    if not any(row.f1 for row in group.rows):
        spare.add("F1 %")
    if not any(row.transfer_seconds for row in group.rows):
        spare.add("transfer s")
    return [column for column in COLUMNS if column.title not in spare]


def render_terminal(comparison: Comparison, console: Console) -> None:
    """Print the tables and verdicts. Nothing read from a record is taken for markup."""
    from rich.markup import escape
    from rich.padding import Padding

    for group in comparison.groups:
        console.print(f"\n[bold]{escape(group.name)}[/bold]  {escape(group.evaluated)}")
        for cost in (False, True):
            rest = [column for column in columns(group) if column.cost is cost]
            unbounded = console.options.update(max_width=10_000)
            while rest:  # as many columns a table as the terminal is wide
                count = len(rest)
                while (
                    count > 1
                    and console.measure(_table(group, rest[:count]), options=unbounded).maximum
                    > console.width
                ):
                    count -= 1
                console.print(Padding(_table(group, rest[:count]), (1, 0, 0, 0)))
                rest = rest[count:]
        if group.lengths:
            console.print(Padding(_length_table(group), (1, 0, 0, 0)))
        console.print()
        for sentence in (*group.verdict, *group.notes):
            console.print(f"• {escape(sentence)}", highlight=False)
    if comparison.failures:
        console.print("\n[bold]Not in the tables[/bold]")
        for failure in comparison.failures:
            console.print(escape(f"• {failure.id}: {failure.status}. {failure.error}"), highlight=False)
    for note in comparison.notes:
        console.print(f"\n{escape(note)}", highlight=False)


def _table(group: Group, chosen: Sequence[Column]) -> Table:
    """A terminal's table of some columns, with the baseline where its figure has a column."""
    from rich.markup import escape

    table = _headed(["attention", *(column.title for column in chosen)])
    for row in group.rows:
        table.add_row(escape(row.title), *(escape(column.text(row)) for column in chosen))
    share = {"eval accuracy %": percent(group.baseline)}
    if any(column.title in share for column in chosen):
        cells = (share.get(column.title, "–") for column in chosen)
        table.add_row(escape(_baseline_label(group)), *cells, style="dim")
    return table


def _by_length(group: Group) -> list[list[str]]:
    """Accuracy in each quartile of length, the headings first."""
    lines = [["accuracy % by tokens", *group.lengths]]
    return lines + [[row.title, *map(_interval_text, row.by_length)] for row in group.rows]


def _headed(headings: Sequence[str]) -> Table:
    """An empty table; long names of rows are folded, figures never."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(headings[0], max_width=36, overflow="fold")
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _length_table(group: Group) -> Table:
    from rich.markup import escape

    heading, *lines = _by_length(group)
    table = _headed(heading)
    for line in lines:
        table.add_row(*map(escape, line))
    return table


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
    """What Markdown says of a group, by name, in its order: evaluated, verdict, accuracy, cost, length."""
    parts = {
        "evaluated": markdown_escape(group.evaluated),
        "verdict": _bullets((*group.verdict, *group.notes)),
    }
    for name, cost in (("accuracy", False), ("cost", True)):
        chosen = [column for column in columns(group) if column.cost is cost]
        lines = [["attention", *(column.title for column in chosen)]]
        lines += [[row.title, *(column.text(row) for column in chosen)] for row in group.rows]
        if not cost:
            share = {"eval accuracy %": percent(group.baseline)}
            lines.append([_baseline_label(group), *(share.get(column.title, "–") for column in chosen)])
        parts[name] = _markdown_table(lines)
    return parts | {"length": _markdown_table(_by_length(group)) if group.lengths else ""}


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
        "ECE %",
        lambda r: percent(r.calibration_error) if math.isfinite(r.calibration_error) else "–",
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
        lambda r: f"{r.transfer_seconds:,.1f}" if r.transfer_seconds else "–",
        lambda r: r.transfer_seconds,
        "part of the training time in which the mechanism's own state learnt to match dense attention",
        cost=True,
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
        values["accuracy"] = dataclasses.asdict(row.accuracy)
        values["by_length"] = [dataclasses.asdict(estimate) for estimate in row.by_length]
        values["f1"] = dataclasses.asdict(row.f1) if row.f1 else None
        values["to_best"] = row.to_best._asdict() if row.to_best else None
        values["seeds"] = [run.seed for run in row.runs]
        values["run_ids"] = [plain(run.record.id) for run in row.runs]
        return values

    def group_values(group: Group) -> dict[str, Any]:
        values = {f.name: getattr(group, f.name) for f in dataclasses.fields(group)}
        return {**values, "rows": [row_values(row) for row in group.rows]}

    return finite(
        {
            "groups": [group_values(group) for group in comparison.groups],
            "failures": [dataclasses.asdict(failure) for failure in comparison.failures],
            "notes": comparison.notes,
        }
    )


def finite(values: Any) -> Any:
    """JSON values: tuples as lists, and None for figures that are not finite."""
    if isinstance(values, dict):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
