"""What came of a benchmark: figures, ratios, crossovers, as JSON and as tables. No torch."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import statistics
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bakeoff.comparison.text import markdown_escape, plain
from bakeoff.errors import BakeoffError
from bakeoff.runs import from_plain, whole

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
BENCH = "bench.json"
#: A ratio nearer to 1 than this, in either direction, is not told from noise.
RESOLVED = 1.2


@dataclasses.dataclass(frozen=True)
class Row:
    """One subject in one phase at one length.

    Attributes:
        subject: its name, unique in a run.
        attention: the mechanism it computes, with options.
        peer: the implementation's name; None for ours.
        phase: `inference` or `training`.
        length: tokens of the longest row.
        row_lengths: real tokens of each row.
        seconds: of one call, a timed round each, in order.
        median: of `seconds`.
        flops: of the function for the real tokens; three times the forward's in training.
        tokens_per_second: real tokens, at the median.
        flops_per_second: at the median.
        gemm_share: of the machine's rate at plain matrix products.
        memory_bytes: most that one call holds beyond what was there before.
    """

    subject: str
    attention: str
    peer: str | None
    phase: str
    length: int
    row_lengths: tuple[int, ...]
    seconds: tuple[float, ...]
    median: float
    flops: float
    tokens_per_second: float
    flops_per_second: float
    gemm_share: float
    memory_bytes: int


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as long a peer takes as ours: round by round, then median, least and most."""

    subject: str
    peer: str
    same_function: bool
    phase: str
    length: int
    median: float
    low: float
    high: float
    resolved: bool


@dataclasses.dataclass(frozen=True)
class Crossover:
    """From which measured length on a mechanism beats `baseline`; None: at none up to `longest`."""

    subject: str
    baseline: str
    phase: str
    length: int | None
    longest: int


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """All that `bench.json` holds; the tables and the picture are made from it alone."""

    created: str
    command: str
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    gemm_flops_per_second: float
    gate: tuple[str, ...]
    rows: tuple[Row, ...]
    ratios: tuple[Ratio, ...]
    crossovers: tuple[Crossover, ...]
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Plain values only."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BenchResult:
        """The inverse of `to_dict`."""
        return typing.cast(BenchResult, from_plain(cls, values, "benchmark"))


def read(path: Path) -> BenchResult:
    """The result in a `bench.json`, or in the folder that holds one.

    Raises:
        BakeoffError: there is none, or what is there is none that this version knows.
    """
    path = path / BENCH if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BakeoffError(f"no benchmark at {path}; `bakeoff bench` makes one.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BakeoffError(f"{path}: not a benchmark ({error}).") from None
    try:
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise BakeoffError(f"not a benchmark of schema {SCHEMA}; make it with `bakeoff bench`.")
        result = BenchResult.from_dict(values)
        if not result.rows or not all(row.seconds for row in result.rows):
            raise BakeoffError("a benchmark that holds no times.")
        for row in result.rows:
            if row.length < 1:
                raise BakeoffError(f"{row.subject}: a length of {row.length} tokens.")
            if not all(math.isfinite(time) and time > 0 for time in (row.median, *row.seconds)):
                raise BakeoffError(f"{row.subject}: a time that is no positive number of seconds.")
        needed = {"level", "dtype", "repeats"} - result.settings.keys()
        needed |= {"device", "threads"} - result.environment.keys()
        if needed:
            raise BakeoffError(f"a benchmark that lacks {', '.join(sorted(needed))}.")
    except BakeoffError as error:
        raise BakeoffError(f"{path}: {error}") from None
    return result


def row(
    subject: str,
    attention: str,
    peer: str | None,
    phase: str,
    row_lengths: Sequence[int],
    seconds: Sequence[float],
    forward_flops: float,
    gemm_flops_per_second: float,
    memory_bytes: int,
) -> Row:
    """A row from what was measured."""
    median = statistics.median(seconds)
    flops = forward_flops * (3 if phase == "training" else 1)
    return Row(
        subject, attention, peer, phase, max(row_lengths), tuple(row_lengths), tuple(seconds), median, flops,
        sum(row_lengths) / median, flops / median, flops / median / gemm_flops_per_second, memory_bytes,
    )  # fmt: skip


def ratios(rows: Sequence[Row]) -> tuple[Ratio, ...]:
    """Each peer against ours of the same mechanism, and `sdpa` against every mechanism."""
    return tuple(
        _ratio(ours, peer)
        for ours in rows
        for peer in rows
        if ours.peer is None
        and (peer.peer == "sdpa" or (peer.peer is not None and peer.attention == ours.attention))
        and (ours.phase, ours.length) == (peer.phase, peer.length)
    )


def _ratio(ours: Row, peer: Row) -> Ratio:
    values = [theirs / own for theirs, own in zip(peer.seconds, ours.seconds, strict=True)]
    median = statistics.median(values)
    return Ratio(
        subject=ours.subject,
        peer=str(peer.peer),
        same_function=peer.attention == ours.attention,
        phase=ours.phase,
        length=ours.length,
        median=median,
        low=min(values),
        high=max(values),
        resolved=max(median, 1 / median) >= RESOLVED,
    )


def crossovers(rows: Sequence[Row]) -> tuple[Crossover, ...]:
    """For each mechanism of ours and each phase, against `sdpa` where it was run, else against our dense."""
    baselines = [name for name in ("sdpa", "dense") if any(row.subject == name for row in rows)]
    if not baselines:
        return ()
    found = []
    for phase in dict.fromkeys(row.phase for row in rows):
        here = {(row.subject, row.length): row.median for row in rows if row.phase == phase}
        lengths = sorted({length for _, length in here})
        for subject in dict.fromkeys(r.subject for r in rows if r.peer is None and r.subject != "dense"):
            first = None
            for length in reversed(lengths):
                if here[subject, length] >= here[baselines[0], length]:
                    break
                first = length
            found.append(Crossover(subject, baselines[0], phase, first, lengths[-1]))
    return tuple(found)


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
        title = f"faster than {result.crossovers[0].baseline} from which length on"
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
    from bakeoff.bench.picture import picture

    drawn = picture(result)
    contents = {
        BENCH: json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n",
        "bench.md": markdown(result, "bench.svg" if drawn else None),
    } | ({"bench.svg": drawn} if drawn else {})
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BakeoffError(f"cannot write to {output_dir} ({error.strerror}).") from None
    for name, text in contents.items():
        with whole(output_dir / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [output_dir / name for name in contents]


def command_line(arguments: Sequence[str]) -> str:
    """The command as one would type it."""
    return shlex.join(["bakeoff", *arguments])
