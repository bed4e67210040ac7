import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss

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
    assert metrics.f1_of_confusion(metrics.confusion(labels, answers, 3)) == pytest.approx(expected)


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
    with pytest.raises(BakeoffError, match="Did you mean 'accuracy'"):
        metrics.compute(["acuracy"], [0], [[1.0, 0.0]])
