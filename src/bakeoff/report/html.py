"""The report as one HTML page that needs no network: styles, scripts and figures are inside it.

Text from data is escaped by Jinja everywhere, figures travel as escaped JSON, and a content security policy
lets the browser run the page's own two scripts, named by their hashes, and load nothing.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bakeoff import metrics
from bakeoff.comparison import COLUMNS, Comparison, Group, Row, columns
from bakeoff.comparison.text import percent, plain
from bakeoff.report.plots import figures
from bakeoff.report.reproduce import reproductions

DISAGREEMENTS = 6  # texts shown a group


def page(comparison: Comparison) -> str:
    """The whole of `report.html`."""
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("bakeoff.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    plotly, script = get_plotlyjs(), _asset("report.js")
    plots = [figures(group) for group in comparison.groups]
    sections = [
        {
            "group": group,
            "columns": columns(group),
            "figures": drawn,
            "confusions": [_confusion(group, row) for row in group.rows],
            "disagreements": disagreements(group),
        }
        for group, drawn in zip(comparison.groups, plots, strict=True)
    ]
    return environment.get_template("report.html").render(
        comparison=comparison,
        sections=sections,
        reproductions=reproductions(comparison),
        all_columns=COLUMNS,
        plots=[[dataclasses.asdict(figure) for figure in drawn] for drawn in plots],
        # Our own files and Plotly's: the only text in the page that is not escaped.
        style=Markup(_asset("report.css")),  # noqa: S704
        script=Markup(script),  # noqa: S704
        plotly=Markup(plotly),  # noqa: S704
        script_hashes=[_hash(plotly), _hash(script)],
    )


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
    """The texts whose true class gets the most different probabilities, by each row's first run."""
    rows = [row for row in group.rows if row.fault is None]
    if len(rows) < 2:
        return []
    firsts = [row.runs[0] for row in rows]
    labels = firsts[0].labels
    given = np.stack([run.probabilities[np.arange(len(labels)), labels] for run in firsts])
    answers = np.stack([run.predicted for run in firsts])
    spread = np.where((answers != answers[0]).any(axis=0), np.ptp(given, axis=0), -1.0)
    order = [int(i) for i in np.argsort(-spread, kind="stable")[:DISAGREEMENTS] if spread[i] >= 0]
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
    """Answers a true class, as counts over all seeds and as shares."""
    counts = sum(metrics.confusion(run.labels, run.predicted, len(group.labels)) for run in row.runs)
    table = np.asarray(counts)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
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
