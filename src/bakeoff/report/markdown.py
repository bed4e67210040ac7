"""The report as Markdown: the comparison, its picture, and how to make every run again."""

from __future__ import annotations

from bakeoff.comparison import COLUMNS, Comparison, render_markdown
from bakeoff.report.reproduce import reproductions
from bakeoff.text import markdown_escape


def document(comparison: Comparison, picture: str) -> str:
    """The whole of `report.md`; `picture` is the file name of the plot beside it."""
    parts = [
        "# Bake-off",
        render_markdown(comparison).rstrip(),
        f"## Accuracy against cost\n\n![Accuracy against training time, a panel a task]({picture})",
        "## What the columns mean",
        "\n".join(f"- {markdown_escape(c.title)}: {markdown_escape(c.meaning)}" for c in COLUMNS),
        "## How to make each run again",
        "Save the fields as `run.yaml`, then `bakeoff run run.yaml`.",
    ]
    for run in reproductions(comparison):
        facts = "\n".join(f"- {markdown_escape(name)}: {markdown_escape(text)}" for name, text in run.facts)
        parts.append(f"### {markdown_escape(run.id)}\n\n```yaml\n{run.run_file}\n```\n\n{facts}")
    return "\n\n".join(parts) + "\n"
