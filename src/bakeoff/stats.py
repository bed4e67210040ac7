"""How sure a figure is: intervals and paired tests. All shares are fractions; all intervals are 95 %.

Two things make an accuracy uncertain: which rows it was measured on, and which seed it was trained with.
One run shows the first only. With several seeds both are estimated and added as variances, and the t
quantile (Welch-Satterthwaite degrees of freedom) makes a spread known from two or three seeds count as the
rough estimate it is. Resampling seeds instead would understate their variance by (S - 1) / S, a half at
S = 2; a permutation of rows alone would treat the seeds' luck as if it were skill.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95
RESAMPLES = 2000
_Z = 1.959963984540054  # normal quantile of 97.5 %
_Z_POWER = 0.8416212335729143  # normal quantile of 80 %


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """Accuracy of a minus accuracy of b, its interval, and the p-value of the two being equal."""

    value: float
    low: float
    high: float
    p: float


def accuracy_interval(correct: int, n: int) -> Interval:
    """Wilson's interval for `correct` right answers out of `n`."""
    from scipy.stats import binomtest

    interval = binomtest(int(correct), int(n)).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def bootstrap_interval(metric: Callable[[Any], Any], counts: ArrayLike, seed: int = 0) -> Interval:
    """Percentile bootstrap for a metric of confusion counts (classes, classes), such as F1.

    Drawing n rows with replacement is drawing the confusion counts from a multinomial, which is what this
    does: the same distribution without touching the rows. `metric` maps (…, classes, classes) to (…).
    """
    c = np.asarray(counts)
    draws = np.random.default_rng(seed).multinomial(c.sum(), c.ravel() / c.sum(), size=RESAMPLES)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(metric(draws.reshape(RESAMPLES, *c.shape)), [tail, 1 - tail])
    return Interval(float(low), float(high))


def over_seeds(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """An interval for the mean of one metric over seeds, from its value and its row interval a seed.

    Half-widths of the row intervals give the rows' standard error, the values' spread the seeds'. A single
    seed keeps its row interval: nothing is known of how much another seed would differ.
    """
    if len(values) == 1:
        return intervals[0]
    rows = float(np.mean([high - low for low, high in intervals])) / 2 / _Z
    seeds = float(np.var(values, ddof=1)) / len(values)
    mean, reach = float(np.mean(values)), _half_width(rows**2, [(seeds, len(values) - 1)])
    return Interval(max(0.0, mean - reach), min(1.0, mean + reach))


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """p of McNemar's exact test: of the rows only one of the two got right, did one get more than half?"""
    from scipy.stats import binomtest

    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def paired_difference(correct_a: ArrayLike, correct_b: ArrayLike) -> Difference:
    """Compare two mechanisms on the same rows; arrays of shape (seeds, n), the seeds may differ in number.

    One seed each: McNemar's exact test. More: a t-test on the rows' differences of mean correctness, with
    the variance between seeds added; seeds are not paired, as the same seed in two mechanisms shares little.
    The rows' variance counts half a row more in each cell of the 2 x 2 table (Agresti and Min, 2005), so
    that two runs which happen to agree everywhere still have an interval.
    """
    from scipy.stats import t as student

    a, b = (
        np.atleast_2d(np.asarray(correct_a, dtype=float)),
        np.atleast_2d(np.asarray(correct_b, dtype=float)),
    )
    d = a.mean(axis=0) - b.mean(axis=0)
    n = len(d) + 2
    rows = float((d @ d + 1) / n - (d.sum() / n) ** 2) / n
    seeds = [(float(np.var(x.mean(axis=1), ddof=1)) / len(x), len(x) - 1) for x in (a, b) if len(x) > 1]
    value, reach = float(d.mean()), _half_width(rows, seeds)
    if seeds:
        error = math.sqrt(rows + sum(variance for variance, _ in seeds))
        p = float(2 * student.sf(abs(value) / error, _freedom(rows, seeds)))
    else:
        p = mcnemar(a[0], b[0])
    return Difference(value, value - reach, value + reach, p)


def holm(pvalues: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down method, in the order given: safe for any dependence."""
    adjusted, floor = [0.0] * len(pvalues), 0.0
    for rank, index in enumerate(sorted(range(len(pvalues)), key=lambda i: pvalues[i])):
        floor = max(floor, min(1.0, (len(pvalues) - rank) * pvalues[index]))
        adjusted[index] = floor
    return adjusted


def smallest_difference(measured: Difference) -> float:
    """The accuracy difference that a comparison as exact as `measured` finds in four cases of five."""
    return (measured.high - measured.low) / 2 * (1 + _Z_POWER / _Z)


def _freedom(rows: float, seeds: Sequence[tuple[float, int]]) -> float:
    """Welch-Satterthwaite degrees of freedom; the rows, many, count as infinitely many."""
    doubt = sum(variance**2 / freedom for variance, freedom in seeds)
    return (rows + sum(variance for variance, _ in seeds)) ** 2 / doubt if doubt else math.inf


def _half_width(rows: float, seeds: Sequence[tuple[float, int]]) -> float:
    """Half of the 95 % interval of a mean whose independent variances are those of rows and seeds."""
    from scipy.stats import t as student

    error = math.sqrt(rows + sum(variance for variance, _ in seeds))
    return float(student.ppf((1 + CONFIDENCE) / 2, _freedom(rows, seeds))) * error
