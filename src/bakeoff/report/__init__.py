"""The report of a bake-off: `report.md`, one self-contained `report.html`, and the picture of both.

It is made from run records, predictions and benchmarks' files alone, and the same folder always gives the
same report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bakeoff import runs
from bakeoff.bench.result import read
from bakeoff.comparison import compare
from bakeoff.report.html import page
from bakeoff.report.markdown import document
from bakeoff.report.picture import picture

PICTURE = "accuracy-cost.svg"


def write(root: Path | Sequence[Path], output_dir: Path, bench: Sequence[Path] = ()) -> list[Path]:
    """Compare the runs below `root` and write the report's files into `output_dir`; returns their paths.

    Args:
        root: a folder of runs, or several.
        output_dir: is made where it is not there.
        bench: benchmarks for the page, each a `bench.json` or the folder that holds one.

    Raises:
        BakeoffError: there are no runs, a benchmark cannot be read, or the files cannot be written.
    """
    benches = [read(Path(path)) for path in bench]
    comparison = compare(root)
    output_dir = Path(output_dir)
    contents = {
        "report.md": document(comparison, PICTURE),
        "report.html": page(comparison, benches),
        PICTURE: picture(comparison),
    }
    return runs.write_texts(output_dir, contents)
