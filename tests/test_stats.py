import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import f1_score

from bakeoff import metrics, stats


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (50, 100), (860, 872), (10, 10)])
def test_accuracy_interval_is_wilsons(correct, n):
    z, p = scipy.stats.norm.ppf(0.975), correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert stats.accuracy_interval(correct, n) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_bootstrap_of_counts_equals_a_bootstrap_of_rows():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    answers = np.where(rng.random(200) < 0.8, labels, 1 - labels)
    rows = scipy.stats.bootstrap(
        (labels, answers),
        f1_score,
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=1,
    ).confidence_interval
    counts = stats.bootstrap_interval(metrics.f1_of_confusion, metrics.confusion(labels, answers, 2))
    assert counts == pytest.approx((rows.low, rows.high), abs=0.012)
    assert counts.low < f1_score(labels, answers) < counts.high


def test_bootstrap_is_fixed_by_its_seed():
    counts = np.array([[40, 10], [5, 45]])
    first, again, other = (
        stats.bootstrap_interval(metrics.f1_of_confusion, counts, seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_mcnemar_by_hand():
    a = [True] * 9 + [False] + [True] * 50
    b = [False] * 9 + [True] + [True] * 50
    assert stats.mcnemar(a, b) == pytest.approx(2 * (1 + 10) / 2**10)
    assert stats.mcnemar(a, b) == stats.mcnemar(b, a)
    assert stats.mcnemar(a, a) == 1.0


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.7]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_holm_keeps_the_order_and_never_falls_below():
    values = list(np.random.default_rng(0).random(20) ** 3)
    adjusted = stats.holm(values)
    assert all(a >= p for a, p in zip(adjusted, values, strict=True))
    ranked = [a for _, a in sorted(zip(values, adjusted, strict=True))]
    assert all(a <= b for a, b in pairwise(ranked))


def test_one_seed_each_is_mcnemars_test():
    rng = np.random.default_rng(3)
    a, b = rng.random(500) < 0.9, rng.random(500) < 0.85
    difference = stats.paired_difference(a[None], b[None])
    assert difference.p == stats.mcnemar(a, b)
    assert difference.value == pytest.approx(a.mean() - b.mean())
    assert difference.low < difference.value < difference.high


def test_a_difference_turned_round_changes_its_sign_only():
    rng = np.random.default_rng(4)
    a, b = rng.random((3, 300)) < 0.9, rng.random((2, 300)) < 0.8
    there, back = stats.paired_difference(a, b), stats.paired_difference(b, a)
    assert back == pytest.approx((-there.value, -there.high, -there.low, there.p))


def test_runs_that_agree_everywhere_still_have_an_interval():
    same = np.ones((1, 100), dtype=bool)
    difference = stats.paired_difference(same, same)
    assert difference.value == 0
    assert difference.p == 1
    assert difference.low == -difference.high
    assert 0.005 < difference.high < 0.05


def test_luck_of_seeds_is_not_taken_for_skill():
    """Means differ by a point over 20,000 rows, which rows alone would call certain; seeds differ by more."""

    def runs(*accuracies):
        return np.stack([np.arange(20_000) < accuracy * 20_000 for accuracy in accuracies])

    a, b = runs(0.87, 0.91), runs(0.90, 0.90)
    assert stats.paired_difference(b, a).value == pytest.approx(0.01)
    assert stats.paired_difference(b[:1], a[:1]).p < 1e-6
    assert stats.paired_difference(b, a).p > 0.3


def simulated(rng, seeds, rows, accuracy, spread):
    """Right answers of runs whose seeds differ by `spread`, on rows of differing difficulty."""
    logit = scipy.special.logit(accuracy) + rng.normal(0, 1, rows) + rng.normal(0, spread, (seeds, 1))
    return rng.random((seeds, rows)) < scipy.special.expit(logit)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_no_more_than_five_in_a_hundred_equals_are_told_apart(seeds):
    rng = np.random.default_rng(seeds)
    trials = [
        stats.paired_difference(*(simulated(rng, seeds, 400, 0.85, 0.2) for _ in range(2))).p
        for _ in range(300)
    ]
    assert np.mean(np.array(trials) < 0.05) <= 0.075


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_over_seeds_covers_the_truth(seeds):
    rng = np.random.default_rng(seeds)
    truth = simulated(rng, 400, 2000, 0.85, 0.2).mean()
    held = 0
    for _ in range(300):
        right = simulated(rng, seeds, 400, 0.85, 0.2)
        rows = [stats.accuracy_interval(int(r.sum()), len(r)) for r in right]
        low, high = stats.over_seeds([float(r.mean()) for r in right], rows)
        held += low <= truth <= high
    assert held / 300 >= 0.93


def test_over_seeds_keeps_a_single_seeds_interval_and_stays_a_share():
    only = stats.Interval(0.8, 0.9)
    assert stats.over_seeds([0.85], [only]) == only
    low, high = stats.over_seeds([0.9, 1.0], [stats.Interval(0.85, 0.95), stats.Interval(0.96, 1.0)])
    assert 0 <= low < 0.9
    assert high == 1.0


def test_smallest_difference_is_found_four_times_in_five():
    """Two runs of 800 rows that differ on a fifth of them, by as much as the function says they must."""
    rng = np.random.default_rng(7)

    def measured(gap):
        kind = rng.choice(3, 800, p=[0.1 + gap / 2, 0.1 - gap / 2, 0.8])
        return stats.paired_difference(kind != 1, kind != 0)

    gap = stats.smallest_difference(measured(0.0))
    found = np.mean([measured(gap).p < 0.05 for _ in range(400)])
    assert 0.72 <= found <= 0.88
