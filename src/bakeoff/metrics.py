"""Metrics over one evaluation: labels of shape (n,) and logits of shape (n, classes)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bakeoff.errors import unknown
from bakeoff.runs import Metric

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A metric that is the mean of what each evaluation row adds, by which its interval is found.

    Attributes:
        of_rows: from labels and logits, shape (n,).
        title: its heading in tables, which show a share in percent; None where no table does.
        meaning: of that heading.
        higher_is_better: whether more of it is better.
        by_class: whether classes count alike, however rare: without an error, it rests on the rows of the
            rarest.
    """

    of_rows: Callable[[Integers, Floats], Floats]
    title: str | None = None
    meaning: str = ""
    higher_is_better: bool = True
    by_class: bool = False


def compute(names: Iterable[str], labels: ArrayLike, logits: ArrayLike) -> dict[str, Metric]:
    """The metrics called `names`; an unknown name is an error. `loss` is NaN where a logit is not finite."""
    y, z = np.asarray(labels, dtype=np.int64), np.asarray(logits, dtype=np.float64)
    metrics = {}
    for name in names:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
        measure = METRICS[name]
        metrics[name] = Metric(float(measure.of_rows(y, z).mean()), measure.higher_is_better)
    return metrics


def predicted(logits: ArrayLike) -> Integers:
    """The class with the largest logit, shape (n,); NaN never wins over a number."""
    z = np.asarray(logits, dtype=np.float64)
    return np.where(np.isnan(z), -np.inf, z).argmax(axis=1)


def probabilities(logits: ArrayLike) -> Floats:
    """Softmax over the classes, shape (n, classes)."""
    from scipy.special import softmax

    return softmax(np.asarray(logits, dtype=np.float64), axis=1)


def majority_baseline(labels: ArrayLike) -> tuple[int, float]:
    """The commonest label and the accuracy of always answering it; the lowest label wins a tie."""
    counts = np.bincount(np.asarray(labels, dtype=np.int64))
    return int(counts.argmax()), float(counts.max() / counts.sum())


def confusion(labels: ArrayLike, predictions: ArrayLike, classes: int) -> Integers:
    """Counts of shape (classes, classes): rows are the true labels, columns the predictions."""
    cells = np.asarray(labels) * classes + np.asarray(predictions)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def f1_of_rows(labels: ArrayLike, predictions: ArrayLike, classes: int) -> Floats:
    """What each row adds to F1, shape (n,), whose mean is F1: of label 1 for two classes, else macro.

    F1 is no mean of rows; to first order in the confusion counts it is one, of these values, and their
    variance is that of F1 (the delta method). A class that neither occurs nor is predicted scores 0, as in
    scikit-learn.
    """
    counts = confusion(labels, predictions, classes)
    total = counts.sum(axis=0) + counts.sum(axis=1)
    per_row = 1 / np.maximum(total, 1)  # a class that concerns no row has no hits either
    scores = 2 * np.diagonal(counts) * per_row
    weights = np.array([0.0, 1.0]) if classes == 2 else np.full(classes, 1 / classes)
    slope = weights * per_row
    loss = (slope * scores)[:, None] + slope * scores
    values = weights @ scores + counts.sum() * (2 * np.diag(slope) - loss)
    return values[np.asarray(labels), np.asarray(predictions)]


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """Answers in bins of equal width by their confidence, the probability of the answer itself.

    Attributes:
        counts: answers in each bin, shape (bins,).
        confidence: their mean confidence, shape (bins,); NaN in an empty bin.
        accuracy: the share of them that is right, shape (bins,); NaN in an empty bin.
    """

    counts: Integers
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """The expected calibration error: the mean of |accuracy - confidence| over bins, by their counts.

        Guo et al. 2017, On Calibration of Modern Neural Networks, eq. 3.
        """
        gaps = np.abs(self.accuracy - self.confidence)[self.counts > 0]
        return float(np.average(gaps, weights=self.counts[self.counts > 0]))


def reliability(labels: ArrayLike, logits: ArrayLike, bins: int = 15) -> Reliability:
    """How sure the answers are and how right, by confidence in ((m - 1) / bins, m / bins], m = 1 … bins.

    15 bins of equal width are those of Guo et al. A logit that is not finite makes the error NaN.
    """
    confidence, right = probabilities(logits).max(axis=1), predicted(logits) == np.asarray(labels)
    # NaN is sorted into the last bin.
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    counts, sure, hits = (
        np.bincount(place, weights=weights, minlength=bins) for weights in (None, confidence, right)
    )
    with np.errstate(invalid="ignore"):
        return Reliability(counts, sure / counts, hits / counts)


def _right(labels: Integers, logits: Floats) -> Floats:
    return (predicted(logits) == labels).astype(np.float64)


def _f1(labels: Integers, logits: Floats) -> Floats:
    return f1_of_rows(labels, predicted(logits), logits.shape[1])


def _cross_entropy(labels: Integers, logits: Floats) -> Floats:
    from scipy.special import log_softmax

    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]


#: Every metric a task may name. A new one is a row here.
METRICS: dict[str, Measure] = {
    "accuracy": Measure(_right, "eval accuracy %", "share of evaluation rows answered right"),
    "f1": Measure(_f1, "F1 %", "F1 of label 1 for two classes, else the mean over classes", by_class=True),
    "loss": Measure(_cross_entropy, higher_is_better=False),
}
