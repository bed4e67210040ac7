"""How sure a figure is: intervals and paired tests. All shares are fractions; all intervals are 95 %.

Two things make an accuracy uncertain: which rows it was measured on, and which seed it was trained with.
Runs of several seeds answer the same rows, so values of shape (seeds, rows) are a two-way layout of random
effects, as of several readers of the same cases in radiology. Its analysis of variance (Dorfman, Berbaum and
Metz 1992) splits the error of the grand mean into rows, seeds, and their interaction; the last is in the
spread of the seeds' means already, so it is taken out of the rows' (Hillis 2007), where it would count twice.

`benchmarks/coverage.py` measures how often all of this is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

ALPHA = 0.05
POWER = 0.8
_DEALS = 999


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """Accuracy of a minus accuracy of b.

    Attributes:
        value: the difference.
        low: the lower end of its interval.
        high: the upper end.
        p: how often two that are equally accurate would differ by as much, or more.
        smallest: the difference that a comparison as exact as this one finds in four cases of five.
    """

    value: float
    low: float
    high: float
    p: float
    smallest: float


def mean_interval(values: ArrayLike, alike: int | None = None) -> Interval:
    """An interval for the mean of `values`, shape (n,) or (seeds, n), a share: accuracy, or F1 by its rows.

    Wilson's interval at the effective number of rows, that which would make a share as uncertain (as Korn
    and Graubard 1998 do for Clopper and Pearson's). Right answers of one run get Wilson's own, F1 of two
    classes nearly the indirect one of Lam, Gopal and Qian 2023. A single seed says nothing of how far another
    would be. `alike` is the number of rows to count where all values are equal, n unless given.
    """
    y = np.atleast_2d(values)
    interaction, seeds = _seeds(y)
    rows = max(0.0, float(y.mean(axis=0).var()) / y.shape[1] - interaction)
    error = _Error(rows, [seeds] if seeds else [])
    mean, z = float(y.mean()), error.quantile(ALPHA)
    # Sums of fractions that are all 1 / classes miss 1 by rounding.
    spread = error.variance > 1e-20
    size = mean * (1 - mean) / error.variance if spread else alike or y.shape[1]
    centre = (mean + z**2 / (2 * size)) / (1 + z**2 / size)
    reach = z / (1 + z**2 / size) * math.sqrt(mean * (1 - mean) / size + (z / (2 * size)) ** 2)
    return Interval(max(0.0, centre - reach), min(1.0, centre + reach))


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """McNemar's mid-p: of the rows only one of the two got right, did one get more than half?

    The exact test counts all of the probability of what was seen, the mid-p half of it: with the few rows on
    which two good models differ, the exact test rejects 2 to 5 % of equals instead of 5 % (Fagerland,
    Lydersen and Laake 2013).
    """
    from scipy.special import bdtr

    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    fewer, more = sorted((int((a & ~b).sum()), int((b & ~a).sum())))
    less, seen = bdtr(fewer - 1, fewer + more, 0.5) if fewer else 0.0, bdtr(fewer, fewer + more, 0.5)
    return float(less + seen)  # each of two sides: all that is less, and half of what was seen


def agreement(labels: ArrayLike, answers: ArrayLike) -> float:
    """How often answers dealt out to the rows at random would be right as often as these, or more.

    A permutation test with 999 deals, the same at every call. How often each class is answered stays, so it
    sees what a model knows of a rare class where its accuracy is no higher than that of never answering it.
    """
    y, given, draw = np.asarray(labels), np.asarray(answers), np.random.default_rng(0)
    right = np.count_nonzero(y == given)
    as_many = sum(np.count_nonzero(y == draw.permutation(given)) >= right for _ in range(_DEALS))
    return (1 + as_many) / (1 + _DEALS)


def paired_difference(
    correct_a: ArrayLike, correct_b: ArrayLike, comparisons: int = 1, *, same_seeds: bool = False
) -> Difference:
    """Compare two mechanisms on the same rows; arrays of shape (seeds, n), the seeds may differ in number.

    One seed each: McNemar's mid-p. More: a t-test with the errors of rows and seeds, as the module says. A
    seed decides the order of the rows and the classifier's start, which moves all mechanisms alike: of the
    same seeds, it is the differences whose variance is analysed, and of three or more only what exceeds luck
    counts as known by few. Other seeds are not paired; where one of the two has a single one, its spread over
    seeds is taken to be the other's. The rows' variance counts half a row more in each cell of the 2 x 2
    table (Agresti and Min 2005), so that runs which agree everywhere have an interval.

    Args:
        correct_a: whether a is right, (seeds, n) or (n,).
        correct_b: whether b is.
        comparisons: how many p-values will be adjusted together, which `smallest` allows for.
        same_seeds: whether the two were trained with the same seeds, given in the same order.
    """
    from scipy.special import ndtri

    a, b = (np.atleast_2d(x).astype(float) for x in (correct_a, correct_b))
    varying = (a - b,) if same_seeds else (a, b)
    several = [(_seeds(x), len(x)) for x in varying if len(x) > 1]
    interaction = sum(between for (between, _), _ in several)
    seeds = [found for (_, found), _ in several if found]
    if len(several) == 1:
        [(variance, freedom)] = seeds
        if not same_seeds:  # variances of a mean over S seeds and of a single one are as 1 to S
            interaction *= 1 + several[0][1]
            seeds = [(variance * (1 + several[0][1]), freedom)]
        elif freedom > 1:  # what luck adds to the seeds' spread is known as well as the rows' error
            seeds = [(max(0.0, variance - interaction), freedom)]
            interaction = 0.0
    d = a.mean(axis=0) - b.mean(axis=0)
    n = len(d) + 2
    rows = max(0.0, float(d @ d / n - (d.sum() / n) ** 2) / n - interaction) + 1 / n**2
    error = _Error(rows, seeds)
    value, unit = float(d.mean()), math.sqrt(error.variance)
    reach = error.quantile(ALPHA) * unit
    alpha = ALPHA / comparisons
    smallest = error.quantile(alpha) * unit * (1 - ndtri(POWER) / ndtri(alpha / 2))
    p = error.p(abs(value) / unit) if seeds else mcnemar(a[0], b[0])
    return Difference(value, value - reach, value + reach, p, float(smallest))


def holm(pvalues: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down method, in the order given: safe for any dependence."""
    adjusted, floor = [0.0] * len(pvalues), 0.0
    for rank, index in enumerate(sorted(range(len(pvalues)), key=lambda i: pvalues[i])):
        floor = max(floor, min(1.0, (len(pvalues) - rank) * pvalues[index]))
        adjusted[index] = floor
    return adjusted


def _seeds(y: NDArray[Any]) -> tuple[float, tuple[float, int] | None]:
    """Of the variance of the mean of `y`, (seeds, n): interaction; seeds, with their degrees of freedom."""
    count, n = y.shape
    if count == 1:
        return 0.0, None
    means = y.mean(axis=1)
    rest = y - y.mean(axis=0) - means[:, None] + y.mean()
    interaction = float((rest**2).sum()) / ((count - 1) * max(1, n - 1)) / y.size
    return interaction, (float(means.var(ddof=1)) / count, count - 1)


class _Error(NamedTuple):
    """The variance of a mean: of the rows, whose number makes it known, and of seeds with their freedom."""

    rows: float
    seeds: Sequence[tuple[float, int]]

    @property
    def variance(self) -> float:
        return self.rows + sum(variance for variance, _ in self.seeds)

    def quantile(self, alpha: float) -> float:
        """How many standard errors either way hold all but `alpha`.

        Welch-Satterthwaite where two mechanisms have three seeds or more; it holds too few where a single
        spread, or one of two seeds, stands beside the rows' error. There it is the mean of the normal and
        Student's quantile, weighted by the variances (Cochran and Cox 1950), which errs on the safe side.
        """
        from scipy.special import stdtrit

        if self._welch:
            return float(-stdtrit(self._freedom(self.variance), alpha / 2))
        seeds = sum(variance for variance, _ in self.seeds)  # not by difference, which rounds to 0
        weight = seeds / self.variance if self.variance else 0.0
        normal, few = -stdtrit([math.inf, self._freedom(seeds)], alpha / 2)
        return float((1 - weight) * normal + weight * few)

    def p(self, ratio: float) -> float:
        """The `alpha` whose quantile is `ratio`; 1e-15 where it is less and has to be searched for."""
        from scipy.optimize import brentq
        from scipy.special import stdtr

        if self._welch:
            return float(2 * stdtr(self._freedom(self.variance), -ratio))
        if ratio >= self.quantile(1e-15):
            return 1e-15
        return math.exp(brentq(lambda log: self.quantile(math.exp(log)) - ratio, math.log(1e-15), 0.0))

    @property
    def _welch(self) -> bool:
        return len(self.seeds) == 2 and min(freedom for _, freedom in self.seeds) > 1

    def _freedom(self, variance: float) -> float:
        """Of a variance that is the seeds' and one that is known (Satterthwaite)."""
        doubt = sum(variance**2 / freedom for variance, freedom in self.seeds)
        return variance**2 / doubt if doubt else math.inf
