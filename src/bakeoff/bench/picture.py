"""Time and memory against length as an SVG, from the result alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from bakeoff import svg
from bakeoff.bench.result import RESOLVED, BenchResult, Row

_PANEL = {"width": 860, "height": 300, "left": 64, "right": 340, "top": 44, "bottom": 52}


def picture(result: BenchResult) -> str | None:
    """A panel of time and one of memory for each phase, both axes logarithmic; None for a single length.

    A mechanism has one colour, its peers' lines are dashed, and a dot marks from where on it is faster
    than dense by more than noise. It follows light and dark by itself.
    """
    if len({row.length for row in result.rows}) < 2:
        return None
    attentions = list(dict.fromkeys(row.attention for row in result.rows))
    colors = {row.subject: svg.color(attentions.index(row.attention)) for row in result.rows}
    crossings = {(c.phase, c.subject): c for c in result.crossovers if c.length is not None}
    panels: list[dict[str, Any]] = []
    for phase in dict.fromkeys(row.phase for row in result.rows):
        rows = [row for row in result.rows if row.phase == phase]
        title = f"{phase}, {result.settings['level']} level"
        panels.append(_panel(len(panels), f"{title}: time", "ms a call", rows, lambda r: 1000 * r.median))
        panels.append(
            _panel(len(panels), f"{title}: memory", "MiB of one call", rows, lambda r: r.memory_bytes / 2**20)
        )
        for line in panels[-2]["lines"]:
            if crossing := crossings.get((phase, line["label"])):
                x, y = line["at"][crossing.length]
                text = f"{RESOLVED} × faster than {crossing.baseline} from {crossing.length:,} tokens on"
                line["crossing"] = {"x": x, "y": y, "title": text}
    for panel in panels:
        for line in panel["lines"]:
            line["color"] = colors[line["label"]]
    height = len(panels) * _PANEL["height"]
    return svg.render("bakeoff.bench", "bench.svg.html", panels=panels, size=_PANEL, height=height)


def _panel(
    index: int, title: str, unit: str, rows: Sequence[Row], value: Callable[[Row], float]
) -> dict[str, Any]:
    """A panel in pixels: ticks, a line a subject, and labels pushed apart where they would meet."""
    lengths = sorted({row.length for row in rows})
    y_ticks = _decades([value(row) for row in rows])
    top = index * _PANEL["height"]
    floor, ceiling = top + _PANEL["height"] - _PANEL["bottom"], top + _PANEL["top"]
    left, right = _PANEL["left"], _PANEL["width"] - _PANEL["right"]

    def x(length: int) -> float:
        return round(left + (right - left) * math.log(length / lengths[0], lengths[-1] / lengths[0]), 1)

    def y(amount: float) -> float:
        share = math.log(max(amount, y_ticks[0]) / y_ticks[0], y_ticks[-1] / y_ticks[0])
        return round(floor - (floor - ceiling) * share, 1)

    lines: list[dict[str, Any]] = []
    for subject in dict.fromkeys(row.subject for row in rows):
        own = sorted((row for row in rows if row.subject == subject), key=lambda row: row.length)
        at = {row.length: (x(row.length), y(value(row))) for row in own}
        lines.append(
            {
                "label": subject,
                "peer": own[0].peer is not None,
                "at": at,
                "points": " ".join(f"{a},{b}" for a, b in at.values()),
                "y": at[own[-1].length][1],
            }
        )
    svg.push_apart(lines, lowest=floor + _PANEL["bottom"] - 8)
    return {
        "title": title,
        "x_title": "tokens",
        "y_title": unit,
        "left": left,
        "right": right,
        "floor": floor,
        "ceiling": ceiling,
        "x_ticks": [(x(length), f"{length:,}") for length in lengths],
        "y_ticks": [(y(tick), f"{tick:g}") for tick in y_ticks],
        "lines": lines,
    }


def _decades(values: Sequence[float]) -> list[float]:
    """Powers of ten around positive values, two at least."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return [10.0**power for power in range(low, max(high, low + 1) + 1)]
