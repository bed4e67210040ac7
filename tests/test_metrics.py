import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

from bakeoff import metrics
from bakeoff.errors import BakeoffError


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_metrics_equal_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 300)
    logits = rng.normal(size=(300, classes)) + 2 * np.eye(classes)[labels] * rng.random((300, 1))
    found = metrics.compute(metrics.METRICS, labels, logits)
    answers = logits.argmax(axis=1)
    average = "binary" if classes == 2 else "macro"
    assert found["accuracy"].value == accuracy_score(labels, answers)
    assert found["f1"].value == pytest.approx(f1_score(labels, answers, average=average), abs=1e-12)
    assert found["loss"].value == pytest.approx(log_loss(labels, metrics.probabilities(logits)), abs=1e-9)
    assert {name for name, metric in found.items() if not metric.higher_is_better} == {"loss"}


def test_a_class_that_neither_occurs_nor_is_answered_scores_zero():
    labels, answers = [0, 0, 1], [0, 1, 1]
    expected = f1_score(labels, answers, labels=[0, 1, 2], average="macro", zero_division=0)
    assert metrics.f1_of_rows(labels, answers, 3).mean() == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 4])
def test_f1_by_row_is_its_slope_in_the_weight_of_a_row(classes):
    """A row of each kind counted a little more, by scikit-learn; a class of no row changes nothing."""
    rng = np.random.default_rng(classes)
    labels, answers = rng.integers(0, classes, (2, 90))
    average = "binary" if classes == 2 else "macro"
    values = metrics.f1_of_rows(labels, answers, classes)
    step = 1e-6
    for row in range(0, 90, 9):
        more, less = (
            f1_score(labels, answers, average=average, sample_weight=1 + sign * step * (np.arange(90) == row))
            for sign in (1, -1)
        )
        assert values[row] - values.mean() == pytest.approx(90 * (more - less) / (2 * step), abs=1e-6)


def test_confusion_is_scikit_learns():
    labels, answers = np.random.default_rng(0).integers(0, 3, (2, 50))
    assert (metrics.confusion(labels, answers, 4) == confusion_matrix(labels, answers, labels=range(4))).all()


def test_columns_of_objects_and_of_small_floats_are_computed_as_numbers():
    """As a table gives them: what is computed is fp64 all the same."""
    labels, logits = [1, 0, 1], [[0.1, 0.7], [0.3, 0.2], [0.9, 0.4]]
    expected = metrics.compute(metrics.METRICS, labels, logits)
    columns = np.array(labels, dtype=object), np.array(logits, dtype=object)
    assert metrics.compute(metrics.METRICS, *columns) == expected
    assert metrics.majority_baseline(columns[0]) == (1, 2 / 3)
    assert metrics.predicted(columns[1]).tolist() == [1, 0, 0]
    small = np.array(logits, dtype=np.float32)
    wide = small.astype(np.float64)
    assert metrics.compute(["loss"], labels, small) == metrics.compute(["loss"], labels, wide)
    np.testing.assert_array_equal(metrics.probabilities(small), metrics.probabilities(wide))


def test_f1_is_of_label_one():
    always_one = np.tile([0.0, 1.0], (4, 1))
    assert metrics.compute(["f1"], [1, 1, 0, 0], always_one)["f1"].value == pytest.approx(2 / 3)


def test_loss_survives_logits_whose_exponentials_do_not():
    loss = metrics.compute(["loss"], [1], [[1000.0, 0.0]])["loss"].value
    assert loss == pytest.approx(1000.0)


def test_a_nan_logit_gives_a_nan_loss_and_is_never_the_answer():
    logits = [[math.nan, 1.0], [math.nan, 1.0]]
    found = metrics.compute(["accuracy", "loss"], [1, 1], logits)
    assert found["accuracy"].value == 1.0
    assert math.isnan(found["loss"].value)


def test_majority_baseline():
    assert metrics.majority_baseline([0, 2, 2, 1, 2]) == (2, 0.6)
    assert metrics.majority_baseline([1, 0, 1, 0]) == (0, 0.5)


def test_an_unknown_metric_is_refused_with_a_suggestion():
    with pytest.raises(BakeoffError, match=r"^unknown metric 'acuracy'. Did you mean 'accuracy'"):
        metrics.compute(["acuracy"], [0], [[1.0, 0.0]])


def test_calibration_error_by_hand():
    """Two of the 15 bins hold answers: three right of four at 0.62 and 0.64, one right of two at 0.9."""
    confidence = [0.62, 0.62, 0.64, 0.64, 0.9, 0.9]
    logits = [[math.log(c), math.log(1 - c)] for c in confidence]
    with np.errstate(invalid="raise"):  # bins without an answer are no fault
        found = metrics.reliability([0, 0, 0, 1, 0, 1], logits)
    assert found.counts.tolist() == [0] * 9 + [4, 0, 0, 0, 2, 0]
    assert found.confidence[[9, 13]] == pytest.approx([0.63, 0.9])
    assert found.accuracy[[9, 13]] == pytest.approx([0.75, 0.5])
    assert found.error == pytest.approx(4 / 6 * 0.12 + 2 / 6 * 0.4)


@pytest.mark.parametrize("classes", [2, 4])
def test_reliability_equals_scikit_learn_on_the_answers_given(classes):
    """`calibration_curve` knows two classes: here those of right and wrong."""
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 500)
    logits = 2 * rng.normal(size=(500, classes)) + np.eye(classes)[labels]
    found = metrics.reliability(labels, logits)
    confidence = metrics.probabilities(logits).max(axis=1)
    accuracy, mean = calibration_curve(metrics.predicted(logits) == labels, confidence, n_bins=15)
    full = found.counts > 0
    assert found.accuracy[full] == pytest.approx(accuracy)
    assert found.confidence[full] == pytest.approx(mean)
    assert found.counts.sum() == 500


def test_a_sure_and_right_model_has_no_calibration_error_and_a_diverged_one_none_to_tell():
    assert metrics.reliability([0, 1], [[99.0, 0.0], [0.0, 99.0]]).error == 0
    assert math.isnan(metrics.reliability([0, 1], [[1.0, 0.0], [math.nan, 0.0]]).error)
