"""What came of a benchmark: figures, ratios, crossovers, as JSON. No torch."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import statistics
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bakeoff.errors import BakeoffError
from bakeoff.runs import from_plain

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
    """From which measured length on a mechanism is `RESOLVED` times as fast as `baseline`, or more.

    None: at none up to `longest`.
    """

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
                if here[baselines[0], length] < RESOLVED * here[subject, length]:
                    break
                first = length
            found.append(Crossover(subject, baselines[0], phase, first, lengths[-1]))
    return tuple(found)


def command_line(arguments: Sequence[str]) -> str:
    """The command as one would type it."""
    return shlex.join(["bakeoff", *arguments])
