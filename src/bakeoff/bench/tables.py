"""A benchmark as tables, in the terminal and as Markdown, and its files."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bakeoff.bench.picture import picture
from bakeoff.bench.result import BENCH, RESOLVED, BenchResult, Ratio, Row
from bakeoff.errors import BakeoffError
from bakeoff.runs import write_texts
from bakeoff.text import markdown_escape, plain

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts, for the terminal and for Markdown."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(result: BenchResult) -> list[Table]:
    """Times a phase, then ratios, then crossovers."""
    made = []
    for phase in dict.fromkeys(row.phase for row in result.rows):
        texts = tuple(_row_texts(row) for row in result.rows if row.phase == phase)
        made.append(Table(f"{phase}, {result.settings['level']} level", _ROW_COLUMNS, texts))
    if result.ratios:
        made.append(Table("peer's time / ours", _RATIO_COLUMNS, tuple(map(_ratio_texts, result.ratios))))
    if result.crossovers:
        crossings = tuple(
            (c.subject, c.phase, f"none up to {c.longest:,}" if c.length is None else f"{c.length:,}")
            for c in result.crossovers
        )
        title = f"{RESOLVED} × faster than {result.crossovers[0].baseline} from which length on"
        made.append(Table(title, ("subject", "phase", "tokens"), crossings))
    return made


_ROW_COLUMNS = (
    "tokens", "subject", "ms", "least to most", "tokens/s", "GFLOP/s", "of GEMM %", "memory MiB"
)  # fmt: skip
_TEXTS = ("subject", "phase", "ours", "peer", "")
_WIDEST = 200  # columns that no table needs more of
_RATIO_COLUMNS = ("tokens", "phase", "ours", "peer", "ratio", "least to most", "")


def _row_texts(row: Row) -> tuple[str, ...]:
    return (
        _tokens(row),
        row.subject,
        f"{1000 * row.median:,.2f}",
        f"{1000 * min(row.seconds):,.2f} to {1000 * max(row.seconds):,.2f}",
        f"{row.tokens_per_second:,.0f}",
        f"{row.flops_per_second / 1e9:,.1f}",
        f"{100 * row.gemm_share:.0f}",
        f"{row.memory_bytes / 2**20:,.1f}",
    )


def _tokens(row: Row) -> str:
    """`2 x 512` for equal rows, `512 + 300` for a padded batch."""
    if len(row.row_lengths) == 1:
        return f"{row.length:,}"
    if len(set(row.row_lengths)) == 1:
        return f"{len(row.row_lengths)} x {row.length:,}"
    return " + ".join(f"{length:,}" for length in row.row_lengths)


def _ratio_texts(ratio: Ratio) -> tuple[str, ...]:
    remarks = [] if ratio.same_function else ["another function"]
    remarks += [] if ratio.resolved else ["unresolved"]
    return (
        f"{ratio.length:,}",
        ratio.phase,
        ratio.subject,
        ratio.peer,
        f"{ratio.median:.2f}",
        f"{ratio.low:.2f} to {ratio.high:.2f}",
        ", ".join(remarks),
    )


def render_terminal(result: BenchResult, console: Console) -> None:
    """Print the gate and the tables, every cell whole and none taken for markup."""
    from rich.console import Console
    from rich.table import Table as Shown
    from rich.text import Text

    wide = Console(file=console.file, width=max(console.width, _WIDEST))
    for line in result.gate:
        console.print(Text(line, style="dim"), soft_wrap=True)
    for table in tables(result):
        shown = Shown(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for column in table.columns:
            shown.add_column(column, no_wrap=True, justify="left" if column in _TEXTS else "right")
        for row in table.rows:
            shown.add_row(*map(Text, row))
        console.print(Text(f"\n{table.title}", style="bold"))
        wide.print(shown)


def markdown(result: BenchResult, picture: str | None) -> str:
    """The whole of `bench.md`; `picture` is the file name of the plot beside it, if there is one."""
    settings, environment = result.settings, result.environment
    facts = {
        "When": result.created,
        "Machine": f"{environment['device']}, threads: {environment['threads']}",
        "Versions": ", ".join(
            f"{name} {environment[name]}" for name in ("bakeoff", "python", "torch", "transformers")
        ),
        "Samples": f"{settings['repeats']} timed rounds, medians; a ratio under {RESOLVED:g} in either "
        "direction is marked unresolved",
        "Plain matrix products": f"{result.gemm_flops_per_second / 1e9:,.1f} GFLOP/s in {settings['dtype']}",
    }
    command = plain(result.command)
    lines = [f"- Command: {_literal(command) if '`' in command else f'`{command}`'}"]
    lines += [f"- {name}: {_literal(text)}" for name, text in facts.items()]
    parts = ["# Benchmark", "\n".join(lines)]
    parts += ["## Gate", "\n".join(f"- {_literal(line)}" for line in result.gate)]
    for table in tables(result):
        parts += [f"## {_literal(table.title[0].upper() + table.title[1:])}", _markdown_table(table)]
    if picture:
        parts.append(f"![Time and memory against length]({picture})")
    return "\n\n".join(parts) + "\n"


def _literal(text: str) -> str:
    return markdown_escape(plain(text))


def _markdown_table(table: Table) -> str:
    lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(map(_literal, line))} |" for line in lines)


def check_folder(output_dir: Path) -> None:
    """Raise a BakeoffError, before anything is measured, where `write` could not write."""
    there = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise BakeoffError(f"cannot write to {output_dir}; choose another --output-dir.")


def write(result: BenchResult, output_dir: Path) -> list[Path]:
    """`bench.json`, `bench.md` and, from two lengths on, `bench.svg` into a folder; returns their paths."""
    drawn = picture(result)
    contents = {
        BENCH: json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n",
        "bench.md": markdown(result, "bench.svg" if drawn else None),
    } | ({"bench.svg": drawn} if drawn else {})
    return write_texts(output_dir, contents)
