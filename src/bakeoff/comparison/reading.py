"""A run folder to a run that can be compared, or to the reason why it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bakeoff import runs
from bakeoff.comparison.rows import Failure, Run
from bakeoff.comparison.text import plain
from bakeoff.errors import BakeoffError
from bakeoff.runs import Predictions, RunRecord
from bakeoff.spec import AttentionSpec


def read(folder: Path, record: RunRecord | BakeoffError) -> Run | Failure:
    """The run with its predictions, or the reason why it cannot be compared."""
    if isinstance(record, BakeoffError):
        return Failure(plain(folder.name), "?", "?", "unreadable", plain(str(record)))

    def failure(status: str, error: str) -> Failure:
        try:
            attention = str(AttentionSpec.parse(record.spec.get("attention") or "?"))
        except BakeoffError:
            attention = "?"
        return Failure(*(plain(t) for t in (record.id, _task_name(record), attention, status, error)))

    if record.status != "ok":
        return failure(record.status, record.error or "no reason was recorded")
    parts = record.data.splits.keys() if record.data else ()
    if record.model is None or record.data is None or record.cost is None or {"train", "eval"} - {*parts}:
        return failure("incomplete", "the record lacks its model, data or cost; run it again")
    try:
        predictions = Predictions.load(folder)
    except BakeoffError as error:
        return failure("no predictions", str(error))
    if problem := _problem(predictions, len(record.data.labels)):
        return failure("unusable", f"{runs.PREDICTIONS}: {problem}; run it again")
    return Run(record, record.model, record.data, record.cost, predictions)


def _problem(predictions: Predictions, classes: int) -> str | None:
    n = len(predictions.labels)
    if n == 0:
        return "no rows"
    if any(len(column) != n for column in vars(predictions).values()):
        return "columns of different lengths"
    try:
        labels, logits = np.asarray(predictions.labels), np.asarray(predictions.logits, dtype=float)
    except (TypeError, ValueError):
        return "logits that are no table of numbers"
    if logits.shape != (n, classes):
        return f"logits that do not number {classes}, one a label"
    if labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= classes:
        return f"labels outside 0 to {classes - 1}"
    return None


def _task_name(record: RunRecord) -> str:
    if record.data is not None:
        return record.data.task
    return str(record.spec.get("task") or Path(str(record.spec.get("train_file"))).stem)
