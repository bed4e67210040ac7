"""The report's figures: Plotly specifications for the page, and one SVG picture for everywhere else."""

from __future__ import annotations

import dataclasses
import html
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bakeoff.comparison import Comparison, Group, Row, Run
from bakeoff.report import svg
from bakeoff.report.svg import color

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "x")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One choice of what a figure's x axis shows: its title, and x and y a trace."""

    title: str
    x: list[list[float]]
    y: list[list[float]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot: what it shows, what to see in it, Plotly's data and layout, and choices for its x axis."""

    title: str
    caption: str
    spec: Mapping[str, Any]
    axes: tuple[Axis, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Cost:
    title: str
    of: Callable[[Row], float]
    less_is_better: bool


_COSTS = (
    _Cost("training time, seconds", lambda row: row.train_seconds, True),
    _Cost("training speed, tokens a second", lambda row: row.train_tokens_per_second, False),
    _Cost("evaluation time, seconds", lambda row: row.eval_seconds, True),
    _Cost("evaluation speed, tokens a second", lambda row: row.eval_tokens_per_second, False),
)


def figures(group: Group) -> list[Figure]:
    """Every figure the group has the data for, the most telling first."""
    made = (
        _accuracy_cost(group),
        _training_loss(group),
        _by_length(group),
        _confidence(group),
    )
    return [figure for figure in made if figure is not None]


def front(rows: Sequence[Row], cost: Callable[[Row], float], less_is_better: bool = True) -> list[Row]:
    """The rows that no other beats in both accuracy and cost, from the cheapest on; those that learned."""
    kept: list[Row] = []
    sign = 1 if less_is_better else -1
    learned = [row for row in rows if row.fault is None]
    for row in sorted(learned, key=lambda row: (sign * cost(row), -row.accuracy.value)):
        if not kept or row.accuracy.value > kept[-1].accuracy.value:
            kept.append(row)
    return kept


def _accuracy_cost(group: Group) -> Figure:
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": html.escape(row.label),
            "x": [_COSTS[0].of(row)],
            "y": [100 * row.accuracy.value],
            "error_y": _bars([row.accuracy.value], [row.accuracy]),
            "marker": _marker(i, 11),
        }
        for i, row in enumerate(group.rows)
    ]
    axes = []
    for cost in _COSTS:
        best = front(group.rows, cost.of, cost.less_is_better)
        points = [[row] for row in group.rows] + [best]
        axes.append(
            Axis(
                cost.title,
                [[cost.of(row) for row in rows] for rows in points],
                [[100 * row.accuracy.value for row in rows] for rows in points],
            )
        )
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "best for its cost",
            "x": axes[0].x[-1],
            "y": axes[0].y[-1],
            "line": {"dash": "dot", "width": 1.5, "color": "#888"},
            "hoverinfo": "skip",
        }
    )
    layout = {"xaxis": {"title": {"text": axes[0].title}, "rangemode": "tozero"}, "yaxis": _y("accuracy, %")}
    caption = (
        "Bars are 95 % intervals. The dotted line joins the rows that none beats in both accuracy and cost."
    )
    return Figure("Accuracy against cost", caption, _spec(traces, layout), tuple(axes))


def _training_loss(group: Group) -> Figure | None:
    traces = []
    for i, row in enumerate(group.rows):
        for j, run in enumerate(row.runs):
            points = [(entry["step"], entry["loss"]) for entry in run.record.history if "loss" in entry]
            points = [(step, loss) for step, loss in points if math.isfinite(loss)]
            if len(points) < 2:
                continue
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": html.escape(row.label),
                    "legendgroup": str(i),
                    "showlegend": j == 0,
                    "x": [step for step, _ in points],
                    "y": [loss for _, loss in points],
                    "line": {"color": color(i), "width": 2},
                    "hovertemplate": f"step %{{x}}, seed {run.seed}: %{{y:.3f}}",
                }
            )
    if not traces:
        return None
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": _y("cross-entropy")}
    return Figure("Training loss", "One line a run; seeds share a colour.", _spec(traces, layout))


def _by_length(group: Group) -> Figure | None:
    """Accuracy in the quartiles of length, by the tokens of the first run's encoder."""
    if not group.lengths:
        return None
    traces = []
    for i, row in enumerate(group.rows):
        values = [estimate.value for estimate in row.by_length]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": html.escape(row.label),
                "x": list(group.lengths),
                "y": [100 * value for value in values],
                "error_y": _bars(values, row.by_length),
                "marker": _marker(i, 8),
                "line": {"color": color(i), "width": 1.5},
            }
        )
    layout = {
        "xaxis": {"title": {"text": "tokens in the text"}, "type": "category"},
        "yaxis": _y("accuracy, %"),
    }
    caption = "Texts in four parts of about equal size by length; bars are 95 % intervals."
    return Figure("Accuracy by length", caption, _spec(traces, layout))


def _confidence(group: Group) -> Figure:
    edges = np.linspace(1 / len(group.labels), 1, 21)

    def shares(run: Run) -> np.ndarray[Any, Any]:
        top = np.nan_to_num(run.probabilities.max(axis=1), nan=edges[0])
        return np.histogram(np.clip(top, edges[0], edges[-1]), edges)[0] / len(top)

    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": html.escape(row.label),
            "x": [float(x) for x in (edges[:-1] + edges[1:]) / 2],
            "y": [100 * statistics.fmean(values) for values in zip(*map(shares, row.runs), strict=True)],
            "line": {"color": color(i), "width": 2, "shape": "hvh"},
        }
        for i, row in enumerate(group.rows)
    ]
    layout = {"xaxis": {"title": {"text": "probability of the answer given"}}, "yaxis": _y("% of rows")}
    caption = "A peak at the left edge is a model that does not commit itself; one at the right, a sure one."
    return Figure("Confidence", caption, _spec(traces, layout))


def _spec(traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> dict[str, Any]:
    """Plain JSON for Plotly, checked against its schema. Colours of text and axes are the page's."""
    import plotly.graph_objects as go

    figure = go.Figure(data=list(traces), layout={**layout, "template": "none"})
    return {key: value for key, value in figure.to_plotly_json().items() if key in ("data", "layout")}


def _bars(values: Sequence[float], intervals: Sequence[Any]) -> dict[str, Any]:
    pairs = list(zip(values, intervals, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [100 * (interval.high - value) for value, interval in pairs],
        "arrayminus": [100 * (value - interval.low) for value, interval in pairs],
        "thickness": 1.2,
        "width": 4,
    }


def _marker(i: int, size: int) -> dict[str, Any]:
    return {"color": color(i), "symbol": SYMBOLS[i % len(SYMBOLS)], "size": size}


def _y(title: str) -> dict[str, Any]:
    return {"title": {"text": title}}


# --- the static picture -----------------------------------------------------------------------------------

_PANEL = {"width": 720, "height": 300, "left": 64, "right": 200, "top": 44, "bottom": 52}


def picture(comparison: Comparison) -> str:
    """An SVG of accuracy against training time, a panel a group; it follows light and dark by itself."""
    panels = [_panel(group, i * _PANEL["height"]) for i, group in enumerate(comparison.groups)]
    height = max(1, len(panels)) * _PANEL["height"]
    return svg.render("bakeoff.report", "picture.svg.html", panels=panels, size=_PANEL, height=height)


def _panel(group: Group, top: int) -> dict[str, Any]:
    """A group in pixels: ticks, points with their bars, and labels pushed apart where they would meet."""
    x_ticks = _ticks(0.0, max(row.train_seconds for row in group.rows))
    y_ticks = _ticks(
        100 * min(min(row.accuracy.low for row in group.rows), group.baseline),
        100 * max(row.accuracy.high for row in group.rows),
    )
    floor, ceiling = top + _PANEL["height"] - _PANEL["bottom"], top + _PANEL["top"]
    left, right = _PANEL["left"], _PANEL["width"] - _PANEL["right"]

    def x(seconds: float) -> float:
        return round(left + (right - left) * seconds / x_ticks[-1], 1)

    def y(percent: float) -> float:
        return round(floor - (floor - ceiling) * (percent - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 1)

    points: list[dict[str, Any]] = [
        {
            "label": row.title,
            "color": color(i),
            "x": x(row.train_seconds),
            "y": y(100 * row.accuracy.value),
            "low": y(100 * row.accuracy.low),
            "high": y(100 * row.accuracy.high),
        }
        for i, row in enumerate(group.rows)
    ]
    svg.push_apart(points)
    path = [(x(row.train_seconds), y(100 * row.accuracy.value)) for row in front(group.rows, _COSTS[0].of)]
    return {
        "title": f"{group.name}, {group.evaluated}",
        "left": left,
        "right": right,
        "floor": floor,
        "ceiling": ceiling,
        "x_ticks": [(x(tick), f"{tick:g}") for tick in x_ticks],
        "y_ticks": [(y(tick), f"{tick:g}") for tick in y_ticks],
        "x_title": "training time, seconds",
        "y_title": "accuracy, %",
        "baseline": y(100 * group.baseline),
        "points": points,
        "front": " ".join(f"{a},{b}" for a, b in path),
    }


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers around [low, high]."""
    span = max(high - low, 1e-3)
    power = 10 ** math.floor(math.log10(span))
    step = next(power * k for k in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if span / (power * k) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * k, 10) for k in range(first, max(last, first + 1) + 1)]
