"""The report of a bake-off: `report.md`, one self-contained `report.html`, and the picture of both.

It is made from run records and predictions alone, and the same folder always gives the same report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bakeoff.comparison import compare
from bakeoff.report.html import page
from bakeoff.report.markdown import document
from bakeoff.report.plots import picture

PICTURE = "accuracy-cost.svg"


def write(root: Path | Sequence[Path], output_dir: Path) -> list[Path]:
    """Compare the runs below `root` and write the report's files into `output_dir`; returns their paths."""
    comparison = compare(root)
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    contents = {
        "report.md": document(comparison, PICTURE),
        "report.html": page(comparison),
        PICTURE: picture(comparison),
    }
    for name, text in contents.items():
        (output_dir / name).write_text(text, encoding="utf-8")
    return [output_dir / name for name in contents]
