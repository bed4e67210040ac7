"""A run folder to a run that can be compared, or to the reason why it cannot."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

from bakeoff import runs
from bakeoff.comparison.rows import Failure, Run
from bakeoff.errors import BakeoffError
from bakeoff.runs import Cost, Data, Model, Predictions, RunRecord
from bakeoff.spec import AttentionSpec
from bakeoff.text import plain

_MOST = 1e300  # a sum of larger numbers overflows


def read(folder: Path, record: RunRecord | BakeoffError) -> Run | Failure:
    """The run with its predictions, or the reason why it cannot be compared."""
    if isinstance(record, BakeoffError):
        return Failure(plain(folder.name), "?", "?", "unreadable", plain(str(record)))

    try:
        attention = str(AttentionSpec.parse(record.spec.get("attention") or "?"))
    except BakeoffError as error:
        return Failure(plain(folder.name), "?", "?", "unreadable", plain(f"{runs.RECORD}: {error}"))

    def failure(status: str, error: str) -> Failure:
        return Failure(*(plain(t) for t in (record.id, _task_name(record), attention, status, error)))

    if record.status != "ok":
        return failure(record.status, record.error or "no reason was recorded")
    parts = record.data.splits.keys() if record.data else ()
    if record.model is None or record.data is None or record.cost is None or {"train", "eval"} - {*parts}:
        return failure(
            "incomplete", "the record lacks its model, data or cost; move the folder away, and run it again"
        )
    if doubt := _doubt(record, record.model, record.data, record.cost):
        return failure("unusable", f"{runs.RECORD}: {doubt}; move the folder away, and run it again")
    try:
        predictions = Predictions.load(folder)
    except BakeoffError as error:
        return failure("no predictions", str(error))
    if problem := _problem(predictions, len(record.data.labels)):
        return failure("unusable", f"{runs.PREDICTIONS}: {problem}; move the folder away, and run it again")
    return Run(record, record.model, record.data, record.cost, predictions)


def _doubt(record: RunRecord, model: Model, data: Data, cost: Cost) -> str | None:
    """What the record says that no run can have done, and no mean, axis or table can take."""
    if not isinstance(record.spec.get("seed", 0), int):
        return "its seed is no whole number"
    costs = {name: value for name, value in dataclasses.asdict(cost).items() if name != "how"}
    costs["transfer's seconds"] = record.transfer.seconds if record.transfer else 0.0
    shares = {"share_dense": model.share_dense}
    for part, split in data.splits.items():
        shares[f"{part}'s share_truncated"] = split.share_truncated
        costs |= {
            f"{part}'s label_counts": count
            for count in (sum(split.label_counts.values()), *split.label_counts.values())
        }
    if record.train_loss is not None and (record.train_loss < 0 or _MOST < record.train_loss < math.inf):
        return f"its train_loss is {record.train_loss}"
    for figures, most in ((costs, _MOST), (shares, 1.0)):
        for name, value in figures.items():
            if not 0 <= value <= most:
                return f"its {name} is {value}"
    logged = [value for entry in record.history for value in entry.values()]
    steps = [entry["step"] for entry in record.history if "step" in entry]
    if any(_MOST < abs(v) < math.inf for v in logged) or not all(map(math.isfinite, steps)):
        return "its history has a number that no training logs"
    return None


def _problem(predictions: Predictions, classes: int) -> str | None:
    n = len(predictions.labels)
    if n == 0:
        return "no rows"
    for kind, name in ((int, "ids"), (int, "labels"), (int, "tokens"), (str, "texts")):
        if not all(type(value) is kind for value in getattr(predictions, name)):
            return f"{name} that are not of type {kind.__name__}"
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
