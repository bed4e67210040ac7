"""What a comparison holds: runs, averaged to rows, in groups that share their evaluation rows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bakeoff import metrics, stats
from bakeoff.runs import Cost, Data, Model, Predictions, RunRecord


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run that ended well, with its predictions at hand."""

    record: RunRecord
    model: Model
    data: Data
    cost: Cost
    predictions: Predictions

    @functools.cached_property
    def labels(self) -> NDArray[np.int64]:
        """True classes, shape (n,)."""
        return np.asarray(self.predictions.labels, dtype=np.int64)

    @functools.cached_property
    def logits(self) -> NDArray[np.float64]:
        """Shape (n, classes)."""
        return np.asarray(self.predictions.logits, dtype=np.float64)

    @functools.cached_property
    def predicted(self) -> NDArray[np.int64]:
        """Answered classes, shape (n,)."""
        return metrics.predicted(self.logits)

    @functools.cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Shape (n, classes)."""
        return metrics.probabilities(self.logits)

    @functools.cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Which rows were answered right, shape (n,)."""
        return self.predicted == self.labels

    @property
    def seed(self) -> int:
        """The seed it was trained with."""
        return int(self.record.spec.get("seed", 0))

    @property
    def machine(self) -> tuple[str, ...]:
        """What must be equal for two runs' seconds to be comparable."""
        said = {"processes": 1} | dict(self.record.environment)  # the first records do not say
        return tuple(str(said.get(key)) for key in ("device", "threads", "processes", "dtype"))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A share on the evaluation rows with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One attention with its settings: means over `runs`, which differ in their seed alone."""

    label: str
    attention: str
    runs: tuple[Run, ...]
    metrics: Mapping[str, Estimate]  # accuracy, and what else of `METRICS` its task has and tables show
    calibration_error: float  # expected, as a share; NaN where a logit is not finite
    train_loss: float
    train_seconds: float
    transfer_seconds: float | None  # of these
    train_tokens_per_second: float
    eval_seconds: float
    eval_tokens_per_second: float
    peak_memory_bytes: int
    parameters: int
    attention_parameters: int
    share_truncated: float
    share_dense: float
    by_length: tuple[Estimate, ...]  # accuracy in each of the group's `lengths`
    fault: str | None  # "learned nothing: …" with the likely cause, where that is so
    to_best: stats.Difference | None = None  # best minus this, p adjusted by Holm; None for the best itself

    @property
    def accuracy(self) -> Estimate:
        """What rows are ranked and tested by."""
        return self.metrics["accuracy"]

    @property
    def title(self) -> str:
        """The label, with the one remark that no table may lack."""
        return f"{self.label} (did not learn)" if self.fault else self.label

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Right answers, shape (seeds, n)."""
        return np.stack([run.correct for run in self.runs])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """A task on one set of evaluation rows; `rows` from the most to the least accurate."""

    name: str
    evaluated: str  # how many rows, and of which whole
    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    majority: str  # the commonest label
    baseline: float  # the accuracy of always answering it
    lengths: tuple[str, ...]  # quartiles of the texts' tokens, "12 to 30"; none where all are about as long
    n: int
    resolvable: float | None  # the smallest accuracy difference that could be shown here
    same_machine: bool  # whether seconds may be compared
    notes: tuple[str, ...] = ()
    verdict: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()  # labels of the rows that the paired test does not tell from the best
    choice: str | None = None  # the label of the one to take, if any learned and seconds compare

    @property
    def best(self) -> Row:
        """The most accurate row of those that learned anything."""
        return next(row for row in self.rows if row.to_best is None)


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that cannot stand in a table, and why."""

    id: str
    task: str
    attention: str
    status: str
    error: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All that was found: a group for each task and set of rows, the failures, and remarks on the whole."""

    groups: tuple[Group, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]

    def _repr_markdown_(self) -> str:
        """For notebooks."""
        from bakeoff.comparison.tables import render_markdown

        return render_markdown(self)
