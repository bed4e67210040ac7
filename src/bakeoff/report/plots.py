"""The report's figures: Plotly specifications for the page."""

from __future__ import annotations

import dataclasses
import html
import math
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from bakeoff import metrics, svg
from bakeoff.bench.result import BenchResult
from bakeoff.bench.result import Row as BenchRow
from bakeoff.comparison import Group, Row, Run
from bakeoff.comparison.rows import Estimate
from bakeoff.comparison.tables import by_seed
from bakeoff.text import percent, plain

SYMBOLS = {
    "circle": "●",
    "square": "■",
    "diamond": "◆",
    "triangle-up": "▲",
    "cross": "✚",
    "star": "★",
    "hexagon": "⬢",
    "x": "✖",
}
DASHES = ("solid", "dash", "dot")
AROUND = 5  # logged losses averaged
LONGEST = 36  # characters a line of a name in a tooltip


@dataclasses.dataclass(frozen=True)
class Style:
    """What tells a row from others in every figure: a colour, a symbol as Plotly names it, and a dash."""

    color: str
    symbol: str
    dash: str

    @property
    def glyph(self) -> str:
        """The symbol in characters, for a legend in text; a dash follows where lines are broken."""
        return SYMBOLS[self.symbol] + ("" if self.dash == "solid" else "┄")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One choice of what a figure's x axis shows: its title, and x and y a trace."""

    title: str
    x: list[list[float]]
    y: list[list[float]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot: what it shows, what to see in it, Plotly's data and layout, choices for its x axis.

    A trace's `meta` is the number of the row it belongs to. `table` says the same in numbers, its headings
    first; none where another table of the page does.
    """

    title: str
    caption: str
    spec: Mapping[str, Any]
    axes: tuple[Axis, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()


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


def styles(labels: Sequence[str]) -> list[Style]:
    """A style a label; in whatever order labels come, the same set of them has the same styles."""
    symbols, ranks = [*SYMBOLS], {label: i for i, label in enumerate(sorted(set(labels)))}
    return [
        Style(
            svg.color(i),
            symbols[(i + i // len(svg.PALETTE)) % len(symbols)],  # a colour's second use has another symbol
            DASHES[i // len(svg.PALETTE) % len(DASHES)],
        )
        for i in (ranks[label] for label in labels)
    ]


def figures(group: Group) -> list[Figure]:
    """Every figure the group has the data for, the most telling first."""
    made = (
        _accuracy_cost(group),
        _by_seed(group),
        _by_length(group),
        _calibration(group),
        _confidence(group),
        _training_loss(group),
        _evaluations(group, "accuracy", "Evaluation accuracy in training", "accuracy, %", 100),
        _evaluations(group, "loss", "Evaluation loss in training", "cross-entropy", 1),
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
        _trace(
            i,
            row.label,
            style,
            "markers",
            x=[_COSTS[0].of(row)],
            y=[100 * row.accuracy.value],
            error_y=_bars([row.accuracy.value], [row.accuracy]),
            customdata=[[100 * row.accuracy.low, 100 * row.accuracy.high]],
            hovertemplate="%{y:.2f} % (%{customdata[0]:.2f} to %{customdata[1]:.2f})"
            "<br>%{xaxis.title.text}: %{x:,.4~r}",
        )
        for i, (row, style) in enumerate(styled(group))
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
    traces.append(_guide("best for its cost", axes[0].x[-1], axes[0].y[-1]))
    layout = {"xaxis": {"title": {"text": axes[0].title}, "rangemode": "tozero"}, "yaxis": _y("accuracy, %")}
    caption = (
        "Bars are 95 % intervals. The dotted line joins the rows that none beats in both accuracy and cost. "
        "The table above has the figures."
    )
    return Figure("Accuracy against cost", caption, _spec(traces, layout), tuple(axes))


def _by_seed(group: Group) -> Figure | None:
    """Accuracy of each seed's run; lines that go up and down together were moved by the seed."""
    if not (lines := by_seed(group)):
        return None
    seeds = lines[0][1:-1]
    traces = []
    for i, (row, style) in enumerate(styled(group)):
        found = {str(run.seed): 100 * float(run.correct.mean()) for run in row.runs}
        traces.append(
            _trace(
                i,
                row.label,
                style,
                "lines+markers",
                x=[place for place, seed in enumerate(seeds) if seed in found],
                y=[found[seed] for seed in seeds if seed in found],
                hovertemplate="%{y:.2f} %",
            )
        )
    layout = {
        "xaxis": {
            "title": {"text": "seed"},
            "tickvals": list(range(len(seeds))),
            "ticktext": seeds,
            "showgrid": False,
        },
        "yaxis": _y("accuracy, %"),
    }
    caption = (
        "A seed decides the order of the rows and the classifier's start. Where it moves all lines alike, "
        "their differences are known better than their places."
    )
    return Figure("Accuracy by seed", caption, _spec(traces, layout), table=tuple(map(tuple, lines)))


def _by_length(group: Group) -> Figure | None:
    """Accuracy in the quartiles of length, by the tokens of the first run's encoder."""
    if not group.lengths:
        return None
    places, count = range(len(group.lengths)), len(group.rows)
    traces = [
        _trace(
            i,
            row.label,
            style,
            "lines+markers",
            x=[place + (i + 0.5) / count * 0.4 - 0.2 for place in places],  # bars beside each other
            y=[100 * estimate.value for estimate in row.by_length],
            error_y=_bars([estimate.value for estimate in row.by_length], row.by_length),
            customdata=[
                [100 * estimate.low, 100 * estimate.high, length]
                for estimate, length in zip(row.by_length, group.lengths, strict=True)
            ],
            hovertemplate="%{y:.2f} % (%{customdata[0]:.2f} to %{customdata[1]:.2f})"
            "<br>%{customdata[2]} tokens",
        )
        for i, (row, style) in enumerate(styled(group))
    ]
    layout = {
        "xaxis": {
            "title": {"text": "tokens in the text"},
            "tickvals": list(places),
            "ticktext": [length.replace(" to ", "–") for length in group.lengths],
            "showgrid": False,
        },
        "yaxis": _y("accuracy, %"),
    }
    lines = [
        (row.title, *(f"{percent(e.value)} ({percent(e.low)} to {percent(e.high)})" for e in row.by_length))
        for row in group.rows
    ]
    return Figure(
        "Accuracy by length",
        "Texts in four parts of about equal size by length; bars are 95 % intervals.",
        _spec(traces, layout),
        table=(("accuracy %, by tokens", *group.lengths), *lines),
    )


def _calibration(group: Group) -> Figure | None:
    """Confidence against accuracy, the answers of all seeds together."""
    found = [
        metrics.reliability(
            np.concatenate([run.labels for run in row.runs]), np.concatenate([run.logits for run in row.runs])
        )
        for row in group.rows
    ]
    traces = []
    for i, ((row, style), bins) in enumerate(zip(styled(group), found, strict=True)):
        if not math.isfinite(bins.error):
            continue
        full = np.flatnonzero(bins.counts)
        shares = bins.counts[full] / bins.counts.sum()
        trace = _trace(
            i,
            row.label,
            style,
            "lines+markers",
            x=(100 * bins.confidence[full]).tolist(),
            y=(100 * bins.accuracy[full]).tolist(),
            customdata=[[int(count), int(bins.counts.sum())] for count in bins.counts[full]],
            hovertemplate="%{y:.1f} % right at %{x:.1f} % confidence"
            "<br>%{customdata[0]:,} of %{customdata[1]:,} answers",
        )
        trace["marker"]["size"] = (5 + 13 * np.sqrt(shares)).tolist()
        traces.append(trace)
    if not traces:
        return None
    ends = [100 / len(group.labels), 100.0]
    traces.append(_guide("as right as sure", ends, ends))
    layout = {"xaxis": {"title": {"text": "confidence, %"}}, "yaxis": _y("accuracy, %")}
    edges = np.linspace(0, 100, len(found[0].counts) + 1)
    lines = [
        (
            f"{low:.1f} to {high:.1f}",
            *(
                f"{100 * bins.accuracy[i]:.1f} right at {100 * bins.confidence[i]:.1f}, of {bins.counts[i]:,}"
                if bins.counts[i] and math.isfinite(bins.error)  # NaN is no confidence
                else "–"
                for bins in found
            ),
        )
        for i, (low, high) in enumerate(pairwise(edges))
        if any(bins.counts[i] for bins in found)
    ]
    errors = (
        "expected calibration error %, seeds together",
        *(percent(bins.error) if math.isfinite(bins.error) else "–" for bins in found),
    )
    return Figure(
        "Calibration",
        "Answers by their probability, in bins; a larger point holds more of them. On the dotted line a "
        "model is as right as it is sure; below it, too sure. With one seed, ECE in the table above is the "
        "mean distance from it; with several, the mean of each seed's.",
        _spec(traces, layout),
        table=(("confidence %", *(row.title for row in group.rows)), *lines, errors),
    )


def _confidence(group: Group) -> Figure:
    edges = np.linspace(1 / len(group.labels), 1, 21)

    def shares(run: Run) -> np.ndarray[Any, Any]:
        top = np.nan_to_num(run.probabilities.max(axis=1), nan=edges[0])
        return np.histogram(np.clip(top, edges[0], edges[-1]), edges)[0] / len(top)

    spans = [f"{100 * low:.1f} to {100 * high:.1f}" for low, high in pairwise(edges)]
    spans.append(spans[-1])
    heights = [
        [100 * statistics.fmean(values) for values in zip(*map(shares, row.runs), strict=True)]
        for row in group.rows
    ]
    traces = [
        _trace(
            i,
            row.label,
            style,
            "lines",
            x=[100 * float(edge) for edge in edges],
            y=[*heights[i], heights[i][-1]],  # a step to the right of each edge but the last
            customdata=spans,
            hovertemplate="%{y:.1f} % of rows at %{customdata} % confidence",
        )
        for i, (row, style) in enumerate(styled(group))
    ]
    for trace in traces:
        trace["line"]["shape"] = "hv"
    layout = {"xaxis": {"title": {"text": "confidence, %"}}, "yaxis": _y("% of rows")}
    lines = [(span, *(f"{column[i]:.1f}" for column in heights)) for i, span in enumerate(spans[:-1])]
    return Figure(
        "Confidence",
        "The probability of the answer given. A peak at the left edge is a model that does not commit "
        "itself; one at the right, a sure one.",
        _spec(traces, layout),
        table=(("confidence %", *(row.title for row in group.rows)), *lines),
    )


def _training_loss(group: Group) -> Figure | None:
    points = [[_smooth(_logged(run, "loss")) for run in row.runs] for row in group.rows]
    caption = (
        f"One line a run; seeds share a colour. A point is the mean of the {AROUND} logged around it, of "
        "fewer at the ends."
    )
    return _curves(group, points, "Training loss", caption, "cross-entropy", ".3f")


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Running means: losses of single steps lie so far apart that their lines would hide each other."""
    reach = AROUND // 2
    return [
        (step, statistics.fmean(value for _, value in points[max(0, i - reach) : i + reach + 1]))
        for i, (step, _) in enumerate(points)
    ]


def _evaluations(group: Group, metric: str, title: str, unit: str, scale: float) -> Figure | None:
    """The evaluations of `eval_steps`; the last point is the run's own figure."""

    def points(run: Run) -> list[tuple[float, float]]:
        found = _logged(run, f"eval_{metric}")
        last = run.record.metrics.get(metric)
        if found and last is not None and math.isfinite(last.value):
            steps = (entry["step"] for entry in run.record.history if "step" in entry)
            found.append((max(steps), last.value))
        return [(step, scale * value) for step, value in found]

    return _curves(
        group,
        [[points(run) for run in row.runs] for row in group.rows],
        title,
        "On the evaluation rows, while training; one line a run; the last point is the run's result.",
        unit,
        ".2f" if scale > 1 else ".3f",
    )


def _logged(run: Run, key: str) -> list[tuple[float, float]]:
    """The steps at which the history has a finite `key`, with its values."""
    return [
        (entry["step"], entry[key])
        for entry in run.record.history
        if "step" in entry and math.isfinite(entry.get(key, math.nan))
    ]


def _curves(
    group: Group,
    points: Sequence[Sequence[Sequence[tuple[float, float]]]],
    title: str,
    caption: str,
    unit: str,
    digits: str,
) -> Figure | None:
    """Values against steps, given a row and run; None where no run has two points."""
    traces, lines = [], []
    for i, ((row, style), runs) in enumerate(zip(styled(group), points, strict=True)):
        for run, found in zip(row.runs, runs, strict=True):
            if len(found) < 2:
                continue
            traces.append(
                _trace(
                    i,
                    row.label,
                    style,
                    "lines",
                    x=[step for step, _ in found],
                    y=[value for _, value in found],
                    hovertemplate=f"%{{y:{digits}}} at step %{{x:,.0f}}, seed {run.seed}",
                )
            )
            quarters = (found[round(part * (len(found) - 1) / 4)] for part in range(5))
            lines.append((row.title, str(run.seed), *(f"{value:{digits}}" for _, value in quarters)))
    if not traces:
        return None
    headings = (unit, "seed", "at the first point", "a quarter", "half", "three quarters", "the last")
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": _y(unit)}
    return Figure(title, caption, _spec(traces, layout), table=(headings, *lines))


def speed(result: BenchResult) -> list[Figure]:
    """Time and memory of a benchmark against length, a figure each and a phase; none for a single length."""
    if len({row.length for row in result.rows}) < 2:
        return []
    made = []
    for phase in dict.fromkeys(row.phase for row in result.rows):
        for what, unit, value in (
            ("time", "ms a call", lambda row: 1000 * row.median),
            ("memory", "MiB of one call", lambda row: row.memory_bytes / 2**20),
        ):
            title = plain(f"{phase}: {what} against length")
            made.append(_against_length(result, phase, title[0].upper() + title[1:], unit, value))
    return made


def _against_length(
    result: BenchResult, phase: str, title: str, unit: str, value: Callable[[BenchRow], float]
) -> Figure:
    traces = []
    for i, (subject, style) in enumerate(subjects(result)):
        rows = sorted(
            (row for row in result.rows if (row.subject, row.phase) == (subject, phase)),
            key=lambda row: row.length,
        )
        trace = _trace(
            i,
            plain(subject),
            style,
            "lines+markers",
            x=[row.length for row in rows],
            # A logarithm has no place for what is not above 0, nor JSON for what is not finite.
            y=[y if math.isfinite(y := value(row)) and y > 0 else None for row in rows],
            hovertemplate=f"%{{y:,.4~r}} {unit}<br>%{{x:,}} tokens",
        )
        traces.append(trace)
    lengths = sorted({row.length for row in result.rows})
    layout = {
        "xaxis": {
            "title": {"text": "tokens"},
            "type": "log",
            "tickvals": lengths,
            "ticktext": [f"{length:,}" for length in lengths],
        },
        "yaxis": {**_y(unit), "type": "log", "dtick": 1},
    }
    return Figure(
        title, "Both axes are logarithmic; the tables below have the figures.", _spec(traces, layout)
    )


def subjects(result: BenchResult) -> list[tuple[str, Style]]:
    """What a benchmark measured: a mechanism and its peers share a colour, and peers' lines are dashed."""
    peers = {row.subject: row.peer is not None for row in result.rows}
    attentions = {row.subject: row.attention for row in result.rows}
    return [
        (subject, dataclasses.replace(style, dash="dash") if peers[subject] else style)
        for subject, style in zip(attentions, styles([*attentions.values()]), strict=True)
    ]


def styled(group: Group) -> list[tuple[Row, Style]]:
    """A group's rows, each with its style."""
    return list(zip(group.rows, styles([row.label for row in group.rows]), strict=True))


def _trace(
    number: int, label: str, style: Style, mode: str, hovertemplate: str, **values: Any
) -> dict[str, Any]:
    """A row's points or line. A tooltip begins with its name: escaped, and in lines of bounded length."""
    return {
        "type": "scatter",
        "mode": mode,
        "name": "<br>".join(map(html.escape, textwrap.wrap(label, LONGEST))),
        "meta": number,
        "hovertemplate": f"%{{fullData.name}}<br>{hovertemplate}<extra></extra>",
        "marker": {
            "color": style.color,
            "symbol": style.symbol,
            "size": 10 if mode == "markers" else 7,
            "line": {"width": 0},
            "opacity": 1,
        },
        "line": {"color": style.color, "dash": style.dash, "width": 1.75},
        **values,
    }


def _guide(name: str, x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """A dotted line that belongs to no row."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(x),
        "y": list(y),
        "line": {"dash": "dot", "width": 1.5, "color": "#888"},
        "hoverinfo": "skip",
    }


def _spec(traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> dict[str, Any]:
    """Plain JSON for Plotly, checked against its schema. Fonts and colours of text are the page's."""
    import plotly.graph_objects as go

    figure = go.Figure(data=list(traces), layout={**layout, "template": "none"})
    return {key: value for key, value in figure.to_plotly_json().items() if key in ("data", "layout")}


def _bars(values: Sequence[float], intervals: Sequence[Estimate]) -> dict[str, Any]:
    pairs = list(zip(values, intervals, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [100 * (interval.high - value) for value, interval in pairs],
        "arrayminus": [100 * (value - interval.low) for value, interval in pairs],
        "thickness": 1.2,
        "width": 3,
    }


def _y(title: str) -> dict[str, Any]:
    return {"title": {"text": title}}
