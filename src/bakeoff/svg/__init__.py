"""What the SVG pictures share: colours, labels that do not meet, and the frame of panels and axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader

# Dark enough on white and light enough on near-black: contrast of 3 or more on both.
PALETTE = ("#2f7fc1", "#d2601a", "#12906a", "#b5609a", "#8f7a1f", "#6a6fd1", "#c2484f", "#6b7f8c")


def color(i: int) -> str:
    """The colour of the i-th thing shown, in every figure."""
    return PALETTE[i % len(PALETTE)]


def push_apart(points: Sequence[dict[str, Any]], lowest: float = math.inf) -> None:
    """Give each point, at pixel `y`, a `label_y` next to it where no other label is, down to `lowest`."""
    ordered = sorted(points, key=lambda point: point["y"])
    next_free = -math.inf
    for point in ordered:
        point["label_y"] = next_free = max(point["y"] + 4, next_free)
        next_free += 15
    for point in reversed(ordered):
        point["label_y"] = lowest = min(point["label_y"], lowest)
        lowest -= 15


def render(package: str, template: str, **values: Any) -> str:
    """A template of `package`, all text escaped; it may extend the shared `frame.svg.html`."""
    loader = ChoiceLoader([PackageLoader(package, "."), PackageLoader("bakeoff.svg", ".")])
    return Environment(loader=loader, autoescape=True).get_template(template).render(values)
