"""How to make a run again: its run file, the data it saw, and what it ran on."""

from __future__ import annotations

import dataclasses
import json

from bakeoff.comparison import Comparison, Run
from bakeoff.spec import NOT_IDENTITY
from bakeoff.text import plain


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """All texts are single lines without control characters, but `run_file`, which has one field a line."""

    id: str
    run_file: str  # YAML for `bakeoff run FILE`
    facts: tuple[tuple[str, str], ...]


def reproductions(comparison: Comparison) -> list[Reproduction]:
    """One for every run in the tables, in their order."""
    return [_reproduction(run) for group in comparison.groups for row in group.rows for run in row.runs]


def _reproduction(run: Run) -> Reproduction:
    record, data = run.record, run.data
    rows = ", ".join(
        f"{name} {split.rows:,} of {split.rows_available:,}" for name, split in data.splits.items()
    )
    facts = {
        "data": data.source,
        "rows": rows,
        "data fingerprint": data.fingerprint,
        "encoder": f"{run.model.base} ({run.model.family})",
        "encoder sha256": run.model.base_sha256 or "unknown",
        "started": record.started,
        "measured": run.cost.how,
        **{key: _text(value) for key, value in record.environment.items()},
    }
    return Reproduction(
        plain(record.id), _run_file(run), tuple((plain(k), plain(v)) for k, v in facts.items())
    )


def _run_file(run: Run) -> str:
    """The fields that decide the result, as YAML; values are JSON: YAML on one line, whatever they hold."""
    fields = {k: v for k, v in run.record.spec.items() if v is not None and k not in NOT_IDENTITY}
    return "\n".join(
        f"{key if key.isidentifier() else json.dumps(key)}: {json.dumps(value)}"
        for key, value in fields.items()
    )


def _text(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
