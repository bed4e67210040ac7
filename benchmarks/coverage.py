"""How often the intervals and tests of `bakeoff.stats` are right, on runs that are simulated.

    python benchmarks/coverage.py --repetitions 10000

A run answers a row right where the row's difficulty (shared by all runs), the mechanism's liking for it
(shared by its seeds), luck, and the level of the seed add up to more than 0; the parts are normal. Of a
seed's level, a part is the mechanism's own, and a part moves all mechanisms alike. Lines printed first say on
how many rows two seeds, and two mechanisms, then differ. The truth is that of all rows and all seeds. A share
p of R repetitions has a standard error of sqrt(p (1 - p) / R).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.special import bdtr
from scipy.stats import multivariate_normal, norm

from bakeoff import metrics, stats

ROWS = (200, 872, 5000)
ACCURACIES = (0.6, 0.85, 0.95)
SPREADS = (0.0, 0.5, 2.0)  # of seeds, the standard deviation of their accuracies in points
SEEDS = (1, 2, 3, 5)
SHARED = 0.8  # of the seeds' variance, the part that moves all mechanisms alike
PAIRS = ((1, 1), (2, 2), (3, 3), (5, 5), (3, 1), (5, 2))
APART = ((1, 1), (3, 3))
ROW, LIKING = 0.8, 0.1  # shares of the variance of an answer; the rest is luck
GAIN = 0.02  # the true difference for which the intervals of one are counted
F1 = {  # shares of the classes, accuracy of a run
    "2 classes, 50 : 50": ((0.5, 0.5), 0.85),
    "2 classes, 90 : 10": ((0.9, 0.1), 0.95),
    "2 classes, 95 : 5": ((0.95, 0.05), 0.99),
    "3 classes, alike": ((1 / 3, 1 / 3, 1 / 3), 0.85),
    "3 classes, 70 : 20 : 10": ((0.7, 0.2, 0.1), 0.95),
    "6 classes, 30 to 5": ((0.3, 0.25, 0.2, 0.1, 0.1, 0.05), 0.85),
}


def runs(
    rng: np.random.Generator,
    rows: int,
    mechanisms: Sequence[tuple[float, float]],
    seeds: int,
    shared: float = SHARED,
) -> list[NDArray[np.bool_]]:
    """Right answers, (seeds, rows), of mechanisms by their accuracy and its spread over seeds in points."""
    difficulty = rng.standard_normal(rows, dtype=np.float32) * math.sqrt(ROW)
    common = rng.standard_normal((seeds, 1)) * math.sqrt(shared)
    right = []
    for accuracy, spread in mechanisms:
        level = norm.ppf(accuracy)
        sigma = spread / 100 / norm.pdf(level)
        liked = difficulty + rng.standard_normal(rows, dtype=np.float32) * math.sqrt(LIKING)
        luck = rng.standard_normal((seeds, rows), dtype=np.float32) * math.sqrt(1 - ROW - LIKING)
        own = common + rng.standard_normal((seeds, 1)) * math.sqrt(1 - shared)
        own = own * sigma + level * math.sqrt(1 + sigma**2)
        right.append(liked + luck + own.astype(np.float32) > 0)
    return right


def compared(a: NDArray[np.bool_], b: NDArray[np.bool_], comparisons: int = 1) -> stats.Difference:
    """As a comparison does it, which pairs the seeds of two lines that have the same."""
    return stats.paired_difference(a, b, comparisons, same_seeds=len(a) == len(b))


def agreement(accuracy: float) -> tuple[float, float]:
    """On which share of the rows two seeds, and two mechanisms, differ."""
    level = norm.ppf(accuracy)

    def differ(shared: float) -> float:
        both = multivariate_normal.cdf([level, level], cov=[[1, shared], [shared, 1]])
        return float(2 * (accuracy - both))

    return differ(ROW + LIKING), differ(ROW)


def exact(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """p of McNemar's exact test, for comparison."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return min(1.0, float(2 * bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def one_and_two(repetitions: int) -> None:
    """Accuracy of one mechanism, and two mechanisms that are equally good or `GAIN` apart."""
    covered, found, held = (defaultdict(Counter) for _ in range(3))
    for rows, accuracy, spread in itertools.product(ROWS, ACCURACIES, SPREADS):
        rng = np.random.default_rng(0)
        key = (f"{rows:,}", f"{100 * accuracy:.0f}", f"{spread:.1f}")
        for _ in range(repetitions):
            true = (accuracy, accuracy, accuracy - GAIN)
            a, b, less = runs(rng, rows, [(share, spread) for share in true], max(SEEDS))
            for seeds in SEEDS:
                low, high = stats.mean_interval(a[:seeds])
                covered[key][seeds] += low <= accuracy <= high
            for pair in PAIRS:
                found[key][pair] += compared(a[: pair[0]], b[: pair[1]]).p < stats.ALPHA
            for pair in APART:
                difference = compared(a[: pair[0]], less[: pair[1]])
                held[key][pair] += difference.low <= GAIN <= difference.high
            found[key]["exact"] += exact(a[0], b[0]) < stats.ALPHA
        progress(key)
    names, apart = ([f"{a} : {b}" for a, b in pairs] for pairs in (PAIRS, APART))
    heads = ["rows", "accuracy %", "seeds' spread, points"]
    show("Coverage of the interval of accuracy", [*heads, *map(str, SEEDS)], covered, SEEDS, repetitions)
    show(
        "False positives of equals",
        [*heads, "1 : 1, exact", *names],
        found,
        ("exact", *PAIRS),
        repetitions,
    )
    show("Coverage of the interval of a difference", [*heads, *apart], held, APART, repetitions)


def pairing(repetitions: int) -> None:
    """Equals, and two that are half of `GAIN` apart, by the part of their seeds' variance that they share."""
    found: dict[tuple[str, ...], Counter] = defaultdict(Counter)
    rows, spread, counts = 5000, 1.0, (2, 3, 5)
    for shared, gap in itertools.product((0.0, 0.5, 0.8, 0.95), (0.0, GAIN / 2)):
        rng = np.random.default_rng(0)
        key = (f"{100 * shared:.0f}", f"{100 * gap:.0f}")
        for _ in range(repetitions):
            a, b = runs(rng, rows, [(0.85, spread), (0.85 - gap, spread)], max(counts), shared)
            for seeds, same in itertools.product(counts, (False, True)):
                difference = stats.paired_difference(a[:seeds], b[:seeds], same_seeds=same)
                found[key][seeds, same] += difference.p < stats.ALPHA
        progress(key)
    columns = list(itertools.product(counts, (False, True)))
    names = [f"{seeds}{', paired' * same}" for seeds, same in columns]
    show("Told apart", ["shared %", "apart, points", *names], found, columns, repetitions)


def unlike(repetitions: int) -> None:
    """Two mechanisms that are equally good on the mean, of which the seeds of the second differ far more."""
    found: dict[tuple[str, ...], Counter] = defaultdict(Counter)
    pairs = ((2, 2), (3, 3), (5, 5), (5, 3), (3, 5), (5, 2), (2, 5), (3, 1), (1, 3))
    for rows in ROWS:
        rng = np.random.default_rng(0)
        for _ in range(repetitions):
            a, b = runs(rng, rows, [(0.85, 0.3), (0.85, 2.0)], max(SEEDS))
            for pair in pairs:
                found[(f"{rows:,}",)][pair] += compared(a[: pair[0]], b[: pair[1]]).p < stats.ALPHA
        progress([f"{rows:,}"])
    names = [f"{a} : {b}" for a, b in pairs]
    show("False positives of equals of unlike spread", ["rows", *names], found, pairs, repetitions)


def f1(repetitions: int) -> None:
    """Coverage of the interval of F1, over seeds whose accuracies differ by half a point."""
    covered: dict[tuple[str, ...], Counter] = defaultdict(Counter)
    for (name, (shares, accuracy)), rows in itertools.product(F1.items(), ROWS):
        rng = np.random.default_rng(0)
        classes = len(shares)
        truth = f1_of(np.array(shares), accuracy)
        key = (name, f"{100 * truth:.0f}", f"{rows:,}")
        for _ in range(repetitions):
            (right,) = runs(rng, rows, [(accuracy, 0.5)], max(SEEDS))
            labels = rng.choice(classes, rows, p=shares)
            wrong = (labels + rng.integers(1, classes, right.shape)) % classes
            rarest = int(np.bincount(labels, minlength=classes).min())
            answers = np.where(right, labels, wrong)
            values = np.stack([metrics.f1_of_rows(labels, row, classes) for row in answers])
            for seeds in SEEDS:
                low, high = stats.mean_interval(values[:seeds], rarest)
                covered[key][seeds] += low <= truth <= high
        progress(key)
    show(
        "Coverage of the interval of F1", ["", "F1 %", "rows", *map(str, SEEDS)], covered, SEEDS, repetitions
    )


def f1_of(shares: NDArray[np.float64], accuracy: float) -> float:
    """F1 of runs that are right with the same probability in every class and else guess another."""
    missed = shares * (1 - accuracy)
    given = shares * accuracy + (missed.sum() - missed) / (len(shares) - 1)
    scores = 2 * shares * accuracy / (shares + given)
    return float(scores[1] if len(shares) == 2 else scores.mean())


def several(repetitions: int) -> None:
    """Tables of equals: how often any is told from the best, and whether the best's own interval holds."""
    counts: dict[tuple[str, ...], Counter] = defaultdict(Counter)
    rows, accuracy = 872, 0.85
    for seeds, mechanisms in itertools.product((1, 3), (2, 3, 5, 8)):
        rng = np.random.default_rng(0)
        key = (str(seeds), str(mechanisms))
        for _ in range(repetitions // 2):
            right = runs(rng, rows, [(accuracy, 0.5 if seeds > 1 else 0.0)] * mechanisms, seeds)
            right.sort(key=lambda run: -run.mean())
            pairs = [compared(a, b).p for a, b in itertools.combinations(right, 2)]
            low, high = stats.mean_interval(right[0])
            to_best = slice(mechanisms - 1)
            counts[key]["unadjusted"] += min(pairs[to_best]) < stats.ALPHA
            counts[key]["best"] += min(stats.holm(pairs[to_best])) < stats.ALPHA
            counts[key]["all"] += min(stats.holm(pairs)[to_best]) < stats.ALPHA
            counts[key]["own"] += low <= accuracy <= high
        progress(key)
    show(
        "Tables of equals",
        [
            "seeds",
            "mechanisms",
            "unadjusted",
            "adjusted for the best's pairs",
            "for all pairs",
            "best covered",
        ],
        counts,
        ("unadjusted", "best", "all", "own"),
        repetitions // 2,
    )


def power(repetitions: int) -> None:
    """How often a difference of the size that `smallest` gives is found."""
    counts: dict[tuple[str, ...], Counter] = defaultdict(Counter)
    for rows, accuracy, seeds in itertools.product(ROWS, ACCURACIES[1:], (1, 3, 5)):
        key = (f"{rows:,}", f"{100 * accuracy:.0f}", str(seeds))
        for comparisons in (1, 10):
            rng = np.random.default_rng(0)
            spread = 0.5 if seeds > 1 else 0.0

            def apart(gap: float, k: int = comparisons) -> stats.Difference:
                a, b = runs(rng, rows, [(accuracy, spread), (accuracy - gap, spread)], seeds)  # noqa: B023
                return compared(a, b, k)

            gap = 0.0
            for _ in range(3):  # rows on which two differ grow with the difference
                gap = float(np.mean([apart(gap).smallest for _ in range(100)]))
            limit = stats.ALPHA / comparisons
            hits = sum(apart(gap).p < limit for _ in range(repetitions // 2))
            counts[*key, f"{comparisons}", f"{100 * gap:.1f}"]["found"] += hits
        progress(key)
    show(
        "Power",
        ["rows", "accuracy %", "seeds", "comparisons", "smallest difference, points", "found"],
        counts,
        ("found",),
        repetitions // 2,
    )


def show(
    title: str,
    heads: Sequence[str],
    counts: dict[tuple[str, ...], Counter],
    columns: Iterable[object],
    repetitions: int,
) -> None:
    """Print shares of the repetitions in % as a Markdown table."""
    error = 100 * math.sqrt(0.05 * 0.95 / repetitions)
    columns = list(columns)
    print(f"\n{title}, in % of {repetitions:,} repetitions (standard error of 5 or 95 %: {error:.2f})\n")
    print(f"| {' | '.join(heads)} |\n|{'---:|' * len(heads)}")
    for key, counter in counts.items():
        shares = (f"{100 * counter[column] / repetitions:.1f}" for column in columns)
        print(f"| {' | '.join((*key, *shares))} |")


def progress(key: Sequence[str]) -> None:
    """Say what is done, apart from the tables."""
    typer.echo(" ".join(key), err=True)


PARTS: dict[str, Callable[[int], None]] = {
    "one-and-two": one_and_two,
    "pairing": pairing,
    "unlike": unlike,
    "f1": f1,
    "several": several,
    "power": power,
}


def main(repetitions: int = 10_000, part: str = "") -> None:
    """Simulate and print; `part` is one of `PARTS`, all unless given."""
    for accuracy in ACCURACIES:
        seeds, mechanisms = agreement(accuracy)
        print(f"{100 * accuracy:.0f} %: two seeds differ on {seeds:.3f}, two mechanisms on {mechanisms:.3f}")
    for name, simulate in PARTS.items():
        if part in ("", name):
            simulate(repetitions)


if __name__ == "__main__":
    typer.run(main)
