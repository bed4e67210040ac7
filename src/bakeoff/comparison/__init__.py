"""Compare the runs below a folder: one table a task, with intervals, paired tests and a plain verdict.

Runs are set side by side only where they were evaluated on the very same rows: a task evaluated on two sets
of rows becomes two groups. Within a group a row is one attention with its settings, averaged over seeds.
Nothing is dropped in silence: what failed, cannot be read, or was superseded is listed with the reason.

The way through: `reading` (folders to runs), `grouping` (runs to tested rows), `verdict` (rows to sentences),
`tables` (all of it for the terminal, as Markdown and as JSON). `rows` holds what passes between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bakeoff import runs
from bakeoff.comparison.grouping import grouped
from bakeoff.comparison.reading import read
from bakeoff.comparison.rows import Comparison, Failure, Group, Row, Run
from bakeoff.comparison.tables import (
    COLUMNS,
    columns,
    finite,
    markdown_parts,
    render_markdown,
    render_terminal,
    to_json,
)
from bakeoff.errors import BakeoffError

__all__ = [
    "COLUMNS",
    "Comparison",
    "Failure",
    "Group",
    "Row",
    "Run",
    "columns",
    "compare",
    "finite",
    "markdown_parts",
    "render_markdown",
    "render_terminal",
    "to_json",
]


def compare(root: Path | Sequence[Path]) -> Comparison:
    """Read every run below `root` (a folder or several) and compare those that can be compared."""
    roots = [Path(root)] if isinstance(root, str | Path) else [Path(path) for path in root]
    found = {folder.resolve(): record for path in roots for folder, record in runs.find(path)}
    if not found:
        where = ", ".join(map(str, roots))
        raise BakeoffError(
            f"no runs below {where}; make one with `bakeoff run`, or name the folder they are in."
        )
    outcomes = [read(folder, record) for folder, record in found.items()]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    groups = grouped((outcome for outcome in outcomes if isinstance(outcome, Run)), failures)
    notes = [
        f"{name} was evaluated on {count} different sets of rows; each has its own table, "
        "and figures must not be compared between them."
        for name, count in Counter(group.name for group in groups).items()
        if count > 1
    ]
    return Comparison(tuple(groups), tuple(failures), tuple(notes))
