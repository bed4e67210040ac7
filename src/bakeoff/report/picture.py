"""Accuracy against training time as one SVG, for wherever no script runs."""

from __future__ import annotations

import math
from typing import Any

from bakeoff import svg
from bakeoff.comparison import Comparison, Group
from bakeoff.report.plots import front, styled

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
            "color": style.color,
            "x": x(row.train_seconds),
            "y": y(100 * row.accuracy.value),
            "low": y(100 * row.accuracy.low),
            "high": y(100 * row.accuracy.high),
        }
        for row, style in styled(group)
    ]
    svg.push_apart(points)
    path = [
        (x(row.train_seconds), y(100 * row.accuracy.value))
        for row in front(group.rows, lambda row: row.train_seconds)
    ]
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
