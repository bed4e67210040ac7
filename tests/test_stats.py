import itertools
import math

import numpy as np
import pandas
import pytest
import scipy.stats
from sklearn.metrics import f1_score
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from bakeoff import metrics, stats

REPETITIONS = 2000
# What chance moves a share of 5 or 95 % by in so many repetitions, but for one case in 2,000; and what
# discreteness and few seeds do to the procedures themselves at the sizes here (docs/statistics.md).
SLACK = 3.5 * math.sqrt(0.05 * 0.95 / REPETITIONS) + 0.005


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (50, 100), (860, 872), (10, 10)])
def test_one_runs_accuracy_has_wilsons_interval(correct, n):
    expected = proportion_confint(correct, n, method="wilson")
    assert stats.mean_interval(np.arange(n) < correct) == pytest.approx(expected, abs=1e-9)


def classified(rng, n, shares, accuracy):
    """Labels and answers that are right with `accuracy` in every class."""
    labels = rng.choice(len(shares), n, p=shares)
    wrong = (labels + rng.integers(1, len(shares), n)) % len(shares)
    return labels, np.where(rng.random(n) < accuracy, labels, wrong)


@pytest.mark.parametrize("shares", [(0.8, 0.2), (0.6, 0.3, 0.1)])
def test_f1_by_row_has_f1_for_mean_and_a_bootstraps_error(shares):
    labels, answers = classified(np.random.default_rng(0), 400, shares, 0.85)
    average = "binary" if len(shares) == 2 else "macro"
    values = metrics.f1_of_rows(labels, answers, len(shares))
    assert values.mean() == pytest.approx(f1_score(labels, answers, average=average), abs=1e-12)
    resampled = scipy.stats.bootstrap(
        (labels, answers),
        lambda y, z: f1_score(y, z, average=average),
        paired=True,
        vectorized=False,
        n_resamples=400,
        method="percentile",
        rng=1,
    )
    # A standard error of 400 resamples is itself known to 1 / sqrt(800), 3.5 %.
    assert values.std() / math.sqrt(400) == pytest.approx(resampled.standard_error, rel=0.11)
    ends = resampled.confidence_interval
    assert stats.mean_interval(values) == pytest.approx((ends.low, ends.high), abs=0.015)


def test_f1_of_two_classes_has_wilsons_interval_of_hits_among_all_that_concern_label_one():
    labels, answers = classified(np.random.default_rng(1), 872, (0.7, 0.3), 0.9)
    hits, concerned = int((labels & answers).sum()), int((labels | answers).sum())
    low, high = proportion_confint(hits, concerned, method="wilson")
    expected = (2 * low / (1 + low), 2 * high / (1 + high))
    found = stats.mean_interval(metrics.f1_of_rows(labels, answers, 2))
    assert found == pytest.approx(expected, abs=1e-3)


def test_several_seeds_have_wilsons_interval_at_the_rows_that_are_as_uncertain():
    (y,) = right(np.random.default_rng(2), 300, [(0.85, 2.0)], 3)
    interaction, seeds = stats._seeds(y)
    rows = y.mean(axis=0).var() / 300 - interaction
    assert rows > interaction > 0  # or neither could be seen to be missing
    mean, z = y.mean(), stats._Error(rows, [seeds]).quantile(0.05)
    size = mean * (1 - mean) / (rows + seeds[0])
    expected = proportion_confint(mean * size, size, 2 * scipy.stats.norm.sf(z), method="wilson")
    assert stats.mean_interval(y) == pytest.approx(expected)


def test_all_right_counts_the_rows_it_is_told_to():
    assert stats.mean_interval(np.ones((2, 50))) == stats.mean_interval(np.ones(50))
    assert stats.mean_interval(np.ones(50), 20) == pytest.approx(
        proportion_confint(20, 20, method="wilson"), abs=1e-9
    )
    rounded = stats.mean_interval(1 - 2**-53 * (np.arange(50) % 2))
    assert rounded == pytest.approx(stats.mean_interval(np.ones(50)), abs=1e-9)
    same = stats.mean_interval(np.tile([True, False], (2, 25)))
    assert same == pytest.approx(proportion_confint(25, 50, method="wilson"), abs=1e-9)


@pytest.mark.parametrize(("only_a", "only_b"), [(9, 1), (1, 9), (4, 4), (0, 6), (0, 0), (300, 260)])
def test_mcnemar_is_the_exact_p_less_half_of_what_was_seen_on_either_side(only_a, only_b):
    a = np.repeat([True, False, True], [only_a, only_b, 50])
    b = np.repeat([False, True, True], [only_a, only_b, 50])
    exact = mcnemar([[50, only_a], [only_b, 0]], exact=True).pvalue
    seen = scipy.stats.binom.pmf(only_a, only_a + only_b, 0.5)
    assert stats.mcnemar(a, b) == pytest.approx(1.0 if only_a == only_b else exact - seen, abs=1e-12)


@pytest.mark.parametrize(("true", "answered"), [(0.5, 0.5), (0.05, 0.02), (0.05, 0.001)])
def test_agreement_of_two_classes_is_fishers_exact_test(true, answered):
    """Which holds the margins too; 999 deals know a p of 5 % to 1.4 points, twice their standard error."""
    n, rng = 1000, np.random.default_rng(0)
    labels = (np.arange(n) < true * n).astype(int)
    for hits in range(4):
        answers = rng.permutation(np.arange(n) < answered * n).astype(int)
        answers[:hits] = 1
        table = metrics.confusion(labels, answers, 2)
        expected = scipy.stats.fisher_exact(table, alternative="greater").pvalue
        spread = 2 * math.sqrt(expected * (1 - expected) / 999) + 0.001
        assert stats.agreement(labels, answers) == pytest.approx(expected, abs=max(spread, 0.003))
        assert stats.agreement(labels, answers) == stats.agreement(labels, answers)


def test_agreement_of_several_classes_counts_right_answers_alone():
    labels = np.repeat([0, 1, 2], 100)
    assert stats.agreement(labels, labels) == 0.001
    assert stats.agreement(labels, (labels + 1) % 3) == 1.0


def test_holm_is_statsmodels():
    for size in (1, 4, 10):
        values = list(np.random.default_rng(size).random(size) ** 3)
        assert stats.holm(values) == pytest.approx(multipletests(values, method="holm")[1], abs=1e-12)
    assert stats.holm([]) == []


def mean_squares(y):
    """Of y (seeds, rows), by statsmodels, over their number: rows, seeds, interaction."""
    seed, row = np.indices(y.shape)
    table = pandas.DataFrame({"y": y.ravel() * 1.0, "seed": seed.ravel(), "row": row.ravel()})
    found = anova_lm(ols("y ~ C(row) + C(seed)", table).fit())["mean_sq"]
    return found.to_numpy() / y.size


def test_two_rows_have_an_interaction_with_one_degree_of_freedom():
    y = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    interaction, (seeds, freedom) = stats._seeds(y)
    _, of_seeds, rest = mean_squares(y)
    assert (interaction, seeds, freedom) == (pytest.approx(rest), pytest.approx(of_seeds), 2)


def test_rows_seeds_and_interaction_are_those_of_an_analysis_of_variance():
    """Of two-way random effects the variance of the mean is rows + seeds - interaction, in mean squares."""
    (y, other) = right(np.random.default_rng(0), 60, [(0.7, 5.0)] * 2, 3)
    rows, seeds, interaction = mean_squares(y)
    rows *= 59 / 60  # a share's variance is over n
    normal, few = scipy.stats.norm.isf(0.025), scipy.stats.t.isf(0.025, 2)
    variance = rows + seeds - interaction
    z = (normal * (rows - interaction) + few * seeds) / variance
    size = y.mean() * (1 - y.mean()) / variance
    ends = np.sort(np.roots([1 + z**2 / size, -2 * y.mean() - z**2 / size, y.mean() ** 2]))
    assert stats.mean_interval(y) == pytest.approx(ends)

    found = stats.paired_difference(y, other[:1])  # a single seed has the spread and the luck of three
    d = y.mean(axis=0) - other[0]
    rows = d @ d / 62 - (d.sum() / 62) ** 2
    rows = rows / 62 - 4 * interaction + 1 / 62**2
    z = (normal * rows + few * 4 * seeds) / (rows + 4 * seeds)
    assert rows > 0.001
    assert found.high - found.value == pytest.approx(z * math.sqrt(rows + 4 * seeds))


def test_luck_beyond_the_rows_own_spread_takes_nothing_from_the_seeds():
    """Two seeds right on each other's wrong rows: of rows there is no error at all, of seeds all."""
    y = np.stack([np.arange(50) < 30, np.arange(50) >= 30])
    z, size = scipy.stats.t.isf(0.025, 1), 0.25 / (0.02 / 2)
    ends = np.sort(np.roots([1 + z**2 / size, -1 - z**2 / size, 0.25]))
    assert stats.mean_interval(y) == pytest.approx(ends)
    reach = scipy.stats.t.isf(0.025, 2) * math.sqrt(0.02)
    assert stats.paired_difference(y, y).high == pytest.approx(reach, rel=0.01)


def test_no_interval_leaves_what_a_share_can_be():
    for n in range(1, 200):
        assert stats.mean_interval(np.zeros(n)).low >= 0
        assert stats.mean_interval(np.ones(n)).high <= 1


def test_a_single_row_of_several_seeds_has_an_interval():
    low, high = stats.mean_interval([[True], [False]])
    assert 0 <= low < 0.5 < high <= 1


@pytest.mark.parametrize("seeds", [(2, 2), (5, 2), (3, 5), (4, 1), (1, 4)])
def test_runs_that_differ_by_seed_alone_get_students_test(seeds):
    """Welch's; with a single seed on one side, which has no spread of its own, the one of equal spreads."""
    rng = np.random.default_rng(5)
    a, b = (rng.normal(mean, 0.01, count) for mean, count in zip((0.88, 0.86), seeds, strict=True))
    found = stats.paired_difference(*(np.repeat(x[:, None], 50_000, axis=1) for x in (a, b)))
    expected = scipy.stats.ttest_ind(a, b, equal_var=min(seeds) == 1)
    assert found.p == pytest.approx(expected.pvalue, rel=0.002)  # the half rows leave 2e-5 of an error
    ends = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=0.002)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_same_seeds_get_students_test_of_their_differences(seeds):
    rng = np.random.default_rng(5)
    both = rng.normal(0, 0.05, seeds)
    a, b = (both + rng.normal(mean, 0.01, seeds) for mean in (0.88, 0.86))
    expanded = [np.arange(100_000) < 100_000 * x[:, None] for x in (a, b)]
    found = stats.paired_difference(*expanded, same_seeds=True)
    expected = scipy.stats.ttest_rel(a, b)
    ends = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue, rel=0.03)  # rows have an error too, if a small one
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=0.001)
    assert stats.paired_difference(*expanded).p > 1.5 * found.p


@pytest.mark.parametrize("count", [2, 3, 4])
def test_differences_of_the_same_seeds_get_an_analysis_of_variance(count):
    """Two seeds as a mechanism's own do; of more, luck is part of the rows' error, and the rest is theirs."""
    a, b = right(np.random.default_rng(1), 60, [(0.7, 9.0)] * 2, count)
    rows, seeds, interaction = mean_squares(a.astype(int) - b)
    d = a.mean(axis=0) - b.mean(axis=0)
    rows = (d @ d / 62 - (d.sum() / 62) ** 2) / 62
    assert min(rows, seeds) > interaction > 0  # or it could not be seen to be missing
    if count == 2:
        rows -= interaction
    else:
        seeds -= interaction
    rows += 1 / 62**2
    normal, few = scipy.stats.norm.isf(0.025), scipy.stats.t.isf(0.025, count - 1)
    z = (normal * rows + few * seeds) / (rows + seeds)
    found = stats.paired_difference(a, b, same_seeds=True)
    assert found.high - found.value == pytest.approx(z * math.sqrt(rows + seeds))
    assert stats.paired_difference(a[0], b[0], same_seeds=True) == stats.paired_difference(a[0], b[0])


def test_seeds_that_differ_by_luck_alone_leave_the_rows_error():
    a, b = (np.tile(np.arange(60) < right, (3, 1)) for right in (50, 44))
    found = stats.paired_difference(a, b, same_seeds=True)
    assert found.high == pytest.approx(stats.paired_difference(a[0], b[0]).high)


def test_a_single_seed_has_the_spread_and_the_interaction_of_the_others():
    """Three seeds against one: variances of the difference are those of three, and three times as much."""
    rng = np.random.default_rng(8)
    a, b = right(rng, 300, [(0.85, 2.0), (0.8, 2.0)], 3)
    found = stats.paired_difference(a, b[0])
    interaction, (seeds, freedom) = stats._seeds(a)
    d = a.mean(axis=0) - b[0]
    counted = d @ d / 302 - (d.sum() / 302) ** 2
    rows = counted / 302 - 4 * interaction + 1 / 302**2
    assert rows > 1 / 302**2  # or there was nothing to take out of
    weight = 4 * seeds / (rows + 4 * seeds)
    normal, few = scipy.stats.norm.ppf(0.975), scipy.stats.t.ppf(0.975, freedom)
    reach = ((1 - weight) * normal + weight * few) * math.sqrt(rows + 4 * seeds)
    assert (found.low, found.high) == pytest.approx((d.mean() - reach, d.mean() + reach))


def test_one_seed_each_is_mcnemars_test_with_agresti_and_mins_interval():
    rng = np.random.default_rng(3)
    a, b = rng.random(500) < 0.9, rng.random(500) < 0.85
    found = stats.paired_difference(a, b)
    only_a, only_b, n = (a & ~b).sum() + 0.5, (b & ~a).sum() + 0.5, 502
    error = math.sqrt(only_a + only_b - (only_a - only_b) ** 2 / n) / n
    assert found.p == stats.mcnemar(a, b)
    assert found.value == pytest.approx(a.mean() - b.mean())
    reach = scipy.stats.norm.ppf(0.975) * error
    assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach))
    assert found.smallest == pytest.approx(error * scipy.stats.norm.ppf([0.975, 0.8]).sum())
    assert stats.paired_difference(a, b, 10).smallest == pytest.approx(
        error * scipy.stats.norm.ppf([0.9975, 0.8]).sum()
    )


@pytest.mark.parametrize("seeds", [(2, 2), (3, 1), (1, 2), (5, 2)])
def test_p_and_interval_of_several_seeds_agree(seeds):
    """So that no verdict contradicts itself; the two are on one side of 5 % within one part in 10,000."""
    rng = np.random.default_rng(6)
    for gap in np.linspace(0, 0.06, 30):
        a, b = right(rng, 300, [(0.85, 1.0), (0.85 - gap, 1.0)], max(seeds))
        found = stats.paired_difference(a[: seeds[0]], b[: seeds[1]])
        back = stats.paired_difference(b[: seeds[1]], a[: seeds[0]])
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
        assert back == pytest.approx((-found.value, -found.high, -found.low, found.p, found.smallest))


@pytest.mark.parametrize(
    ("seeds", "freedom"),
    [([(0.5, 2)], 2), ([(0.25, 1), (0.25, 1)], 2), ([(0.3, 4), (0.2, 1)], 0.25 / 0.0625)],
)
def test_few_seeds_get_cochran_and_coxs_quantile_and_its_p(seeds, freedom):
    error = stats._Error(1.0, seeds)
    for alpha in (0.9, 0.05, 1e-9):
        assert error.p(error.quantile(alpha)) == pytest.approx(alpha)
        normal, few = scipy.stats.norm.isf(alpha / 2), scipy.stats.t.isf(alpha / 2, freedom)
        assert error.quantile(alpha) == pytest.approx((normal + 0.5 * few) / 1.5)
    assert error.p(1e12) == 1e-15


def test_seeds_that_hardly_differ_get_the_normal_quantile():
    error = stats._Error(1.0, [(1e-20, 1), (0.0, 1)])
    assert error.quantile(0.05) == pytest.approx(scipy.stats.norm.isf(0.025))


def test_three_seeds_each_get_satterthwaites_freedom():
    error = stats._Error(1.0, [(0.5, 2), (0.25, 4)])
    freedom = 1.75**2 / (0.5**2 / 2 + 0.25**2 / 4)
    assert error.quantile(0.05) == pytest.approx(scipy.stats.t.isf(0.025, freedom))
    assert error.p(2.5) == pytest.approx(2 * scipy.stats.t.sf(2.5, freedom))


def test_runs_that_agree_everywhere_still_have_an_interval():
    for seeds in (1, 2):
        same = np.ones((seeds, 100), dtype=bool)
        difference = stats.paired_difference(same, same)
        assert difference.value == 0
        assert difference.p == 1
        assert difference.low == -difference.high
        assert 0.005 < difference.high < 0.05


def right(rng, rows, mechanisms, seeds, shared=0.0):
    """Right answers (seeds, rows) of mechanisms by accuracy and its spread over seeds in points.

    Rows differ in difficulty, so that two seeds of 85 % differ on 8 % of the rows and two mechanisms on 12 %.
    `shared` is the part of the seeds' variance that moves all mechanisms alike.
    """
    difficulty, common = rng.normal(0, math.sqrt(0.8), rows), rng.normal(0, math.sqrt(shared), (seeds, 1))
    for accuracy, spread in mechanisms:
        level = scipy.special.ndtri(accuracy)
        sigma = spread / 100 * math.sqrt(2 * math.pi) * math.exp(level**2 / 2)
        own = common + rng.normal(0, math.sqrt(1 - shared), (seeds, 1))
        own = level * math.sqrt(1 + sigma**2) + sigma * own
        liked = difficulty + rng.normal(0, math.sqrt(0.1), rows)
        yield liked + rng.normal(0, math.sqrt(0.1), (seeds, rows)) + own > 0


@pytest.mark.parametrize(("rows", "accuracy"), [(200, 0.95), (800, 0.85)])
def test_the_interval_of_accuracy_covers_the_truth(rows, accuracy):
    rng = np.random.default_rng(rows)
    covered = dict.fromkeys((1, 3, 5), 0)
    for _ in range(REPETITIONS):
        for spread, counts in ((0.0, (1,)), (0.5, (3, 5))):
            (y,) = right(rng, rows, [(accuracy, spread)], max(counts))
            for seeds in counts:
                low, high = stats.mean_interval(y[:seeds])
                covered[seeds] += low <= accuracy <= high
    for count in covered.values():
        assert abs(count / REPETITIONS - 0.95) < SLACK


@pytest.mark.parametrize("shares", [(0.9, 0.1), (0.7, 0.2, 0.1)])
def test_the_interval_of_f1_covers_the_truth(shares):
    """Twenty rows of the rarest class, where a percentile bootstrap covers 87 to 94 %."""
    rng = np.random.default_rng(0)
    truth = np.mean(metrics.f1_of_rows(*classified(rng, 1_000_000, shares, 0.95), len(shares)))
    covered = 0
    for _ in range(REPETITIONS):
        labels, answers = classified(rng, 200, shares, 0.95)
        low, high = stats.mean_interval(metrics.f1_of_rows(labels, answers, len(shares)))
        covered += low <= truth <= high
    assert abs(covered / REPETITIONS - 0.95) < SLACK


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_five_in_a_hundred_equals_are_told_apart(spread):
    rng = np.random.default_rng(int(spread))
    told = {(2, 2): 0, (3, 3): 0, (5, 5): 0, (3, 1): 0, (1, 1): 0}
    for _ in range(REPETITIONS):
        a, b = right(rng, 400, [(0.85, spread)] * 2, 5)
        for seeds in told:
            told[seeds] += stats.paired_difference(a[: seeds[0]], b[: seeds[1]]).p < 0.05
    found = {seeds: count / REPETITIONS for seeds, count in told.items()}
    if spread:
        assert found.pop((1, 1)) > 0.05 + SLACK  # what a single seed cannot know
    for seeds in ((2, 2), (3, 1)):  # on the safe side
        assert found.pop(seeds) < 0.05 + SLACK
    for share in found.values():
        assert abs(share - 0.05) < SLACK


def test_equals_of_the_same_seeds_are_told_apart_as_seldom_and_others_more_often():
    rng = np.random.default_rng(3)
    told = dict.fromkeys(itertools.product((3, 5), (0.0, 0.9), (0.0, 0.01), (False, True)), 0)
    for shared, gap in itertools.product((0.0, 0.9), (0.0, 0.01)):
        for _ in range(REPETITIONS):
            a, b = right(rng, 1000, [(0.85, 1.5), (0.85 - gap, 1.5)], 5, shared)
            for seeds, same in itertools.product((3, 5), (False, True)):
                p = stats.paired_difference(a[:seeds], b[:seeds], same_seeds=same).p
                told[seeds, shared, gap, same] += p < 0.05
    told = {key: count / REPETITIONS for key, count in told.items()}
    for seeds, shared in itertools.product((3, 5), (0.0, 0.9)):
        assert 0.02 < told[seeds, shared, 0.0, True] < 0.05 + SLACK
    for seeds in (3, 5):
        assert told[seeds, 0.9, 0.0, False] < 0.02  # what pairing is for
        assert told[seeds, 0.9, 0.01, True] > 1.5 * told[seeds, 0.9, 0.01, False]


def test_in_five_of_a_hundred_tables_of_five_equals_a_pair_is_told_apart():
    rng = np.random.default_rng(0)
    told = {"pairs of the best": 0, "all pairs": 0}
    for _ in range(REPETITIONS):
        runs = sorted((y[0] for y in right(rng, 400, [(0.85, 0.0)] * 5, 1)), key=np.mean, reverse=True)
        p = [stats.mcnemar(a, b) for i, a in enumerate(runs) for b in runs[i + 1 :]]
        told["pairs of the best"] += min(stats.holm(p[:4])) < 0.05
        told["all pairs"] += min(stats.holm(p)) < 0.05
    assert 0.02 < told["all pairs"] / REPETITIONS < 0.05
    assert told["pairs of the best"] / REPETITIONS > 0.06  # why all pairs are counted


@pytest.mark.parametrize(("seeds", "comparisons"), [(1, 1), (1, 10), (5, 1)])
def test_the_smallest_difference_is_found_four_times_in_five(seeds, comparisons):
    rng = np.random.default_rng(7)

    spread = 0.3 if seeds > 1 else 0.0

    def compared(gap):
        runs = right(rng, 800, [(0.85, spread), (0.85 - gap, spread)], seeds)
        return stats.paired_difference(*runs, comparisons)

    gap = 0.0
    for _ in range(3):  # two that differ more also differ on more rows
        gap = np.mean([compared(gap).smallest for _ in range(100)])
    found = np.mean([compared(gap).p < 0.05 / comparisons for _ in range(1000)])
    assert 0.75 < found < 0.86  # four standard errors of 1,000 repetitions, and the t quantile's excess
