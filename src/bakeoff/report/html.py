"""The report as one HTML page that needs no network: styles, scripts and figures are inside it.

Text from data is escaped by Jinja everywhere, figures travel as escaped JSON, and a content security policy
lets the browser run the page's own two scripts, named by their hashes, and load nothing.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from bakeoff import metrics
from bakeoff.bench.result import BenchResult
from bakeoff.bench.tables import tables
from bakeoff.comparison import COLUMNS, Comparison, Group, Row, Run, columns, finite
from bakeoff.report.plots import Figure, figures, speed, styles, subjects
from bakeoff.report.reproduce import reproductions
from bakeoff.text import percent, plain

DISAGREEMENTS = 50  # texts shown a group
MATRIX = 12  # classes; of more, the commonest mistakes are shown


def page(comparison: Comparison, benches: Sequence[BenchResult] = ()) -> str:
    """The whole of `report.html`, with a section for each task and each benchmark."""
    from plotly.offline import get_plotlyjs

    plotly, script = get_plotlyjs(), _asset("report.js")
    sections = [_section(group) for group in comparison.groups]
    speeds = [
        {
            "result": bench,
            "figures": speed(bench),
            "legend": [(plain(subject), style) for subject, style in subjects(bench)],
            "tables": tables(bench),
        }
        for bench in benches
    ]
    days = [run.record.started[:10] for group in comparison.groups for row in group.rows for run in row.runs]
    return _template().render(
        comparison=comparison,
        sections=sections,
        speeds=speeds,
        days=sorted({plain(min(days)), plain(max(days))}) if days else [],
        reproductions=reproductions(comparison),
        all_columns=COLUMNS,
        plots=[[_plot(figure) for figure in section["figures"]] for section in (*sections, *speeds)],
        # Our own files and Plotly's: the only text in the page that is not escaped.
        style=Markup(_asset("report.css")),  # noqa: S704
        script=Markup(script),  # noqa: S704
        plotly=Markup(plotly),  # noqa: S704
        script_hashes=[_hash(plotly), _hash(script)],
    )


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("bakeoff.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["plain"] = plain
    return environment.get_template("report.html")


def _section(group: Group) -> dict[str, Any]:
    found, labels = disagreements(group), [row.label for row in group.rows]
    large = 2 if group.choice is not None and len(group.tied) > 1 else 1  # the standing, and what to choose
    return {
        "group": group,
        "ran": _what_ran(group),
        "lead": group.verdict[:large],
        "rest": group.verdict[large:],
        "accuracy": [column for column in columns(group) if not column.cost],
        "cost": [column for column in columns(group) if column.cost],
        "styles": styles(labels),
        "legend": list(zip(labels, styles(labels), strict=True)),
        "figures": figures(group),
        "confusions": [_confusion(group, row) for row in group.rows],
        "disagreements": found[:DISAGREEMENTS],
        "disagreeing": len(found),
    }


def _what_ran(group: Group) -> str:
    """Encoder, training rows and machine in a line, so that the page says by itself what was compared."""
    runs = [run for row in group.rows for run in row.runs]

    def one(of: Callable[[Run], object], several: str = "several") -> str:
        found = {str(of(run)) for run in runs}
        return found.pop() if len(found) == 1 else several

    def trained(run: Run) -> str:
        split = run.data.splits["train"]
        return f"{split.rows:,} of {split.rows_available:,} rows"

    def environment(fact: str) -> str:
        return one(lambda run: run.record.environment.get(fact, "unknown"))

    return plain(
        f"encoder: {one(lambda run: run.model.base)}; trained on {one(trained, 'several numbers of rows')}; "
        f"device: {environment('device')}; threads: {environment('threads')}"
    )


def _plot(figure: Figure) -> dict[str, Any]:
    """What the page's script draws: JSON values, of which those that are not finite are left out."""
    return finite({"spec": figure.spec, "axes": figure.axes})


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one row said of a text."""

    row: str
    label: str
    probability: float
    right: bool


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """A text on which the rows of a table differ."""

    text: str
    truth: str
    answers: tuple[Answer, ...]


def disagreements(group: Group) -> list[Disagreement]:
    """The texts that get different answers, by each row's first run.

    First come those whose true class gets the most different probabilities.
    """
    rows = [row for row in group.rows if row.fault is None]
    if len(rows) < 2:
        return []
    firsts = [row.runs[0] for row in rows]
    labels = firsts[0].labels
    given = np.stack([run.probabilities[np.arange(len(labels)), labels] for run in firsts])
    answers = np.stack([run.predicted for run in firsts])
    differ = np.flatnonzero((answers != answers[0]).any(axis=0))
    order = differ[np.argsort(-np.ptp(given, axis=0)[differ], kind="stable")]
    return [
        Disagreement(
            text=plain(firsts[0].predictions.texts[i]),
            truth=group.labels[labels[i]],
            answers=tuple(
                Answer(
                    row.label,
                    group.labels[run.predicted[i]],
                    float(run.probabilities[i].max()),
                    bool(run.correct[i]),
                )
                for row, run in zip(rows, firsts, strict=True)
            ),
        )
        for i in order
    ]


def _confusion(group: Group, row: Row) -> dict[str, Any]:
    """Answers a true class over all seeds, as counts and shares: all of them, or the commonest mistakes."""
    counts = sum(metrics.confusion(run.labels, run.predicted, len(group.labels)) for run in row.runs)
    table = np.asarray(counts)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    if len(group.labels) > MATRIX:
        wrong = np.where(np.eye(len(table), dtype=bool), 0, table)
        commonest = np.unravel_index(np.argsort(-wrong, axis=None, kind="stable")[:MATRIX], wrong.shape)
        return {
            "row": row,
            "mistakes": [
                (group.labels[true], group.labels[answer], int(table[true, answer]), shares[true, answer])
                for true, answer in zip(*commonest, strict=True)
                if wrong[true, answer]
            ],
        }
    return {
        "row": row,
        "lines": [
            (label, list(zip(line.tolist(), share.tolist(), strict=True)))
            for label, line, share in zip(group.labels, table, shares, strict=True)
        ],
    }


def _asset(name: str) -> str:
    return resources.files("bakeoff.report").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
