import pytest

from finemesh.tuning.evaluation.metrics import classification_metrics, regression_metrics, task_losses


def test_two_classes_by_hand():
    scores = classification_metrics([0, 0, 1, 1, 1], [0, 1, 1, 1, 0], 2)  # tp 2, fp 1, fn 1, tn 1
    assert scores["accuracy"] == pytest.approx(0.6)
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["matthews"] == pytest.approx((2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5)


def test_more_classes_take_the_macro_mean():
    assert classification_metrics([0, 1, 2], [0, 1, 1], 3)["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)


@pytest.mark.parametrize(("predicted", "f1"), [([0, 1, 1, 0], 2 / 3), ([0, 1, 0, 1], 1 / 3), ([0, 1, 0, 2], 7 / 18)])
def test_which_classes_occur_does_not_change_what_f1_is(predicted, f1):
    assert classification_metrics([0, 1, 1, 0], predicted, 3)["f1"] == pytest.approx(f1)


def test_correlations():
    scores = regression_metrics([1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 9.0, 16.0])
    assert scores["spearman"] == pytest.approx(1.0)
    assert 0.9 < scores["pearson"] < 1.0


def test_a_constant_prediction_has_no_correlation():
    assert regression_metrics([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == {"pearson": 0.0, "spearman": 0.0}


def test_the_loss_of_every_task_is_over_its_scored_tokens() -> None:
    losses = task_losses(["b", "a", "b", ""], [1.0, 5.0, 4.0, 9.0], [2, 1, 1, 7])
    assert losses == {"loss_a": 5.0, "loss_b": 2.0}
    assert task_losses(["", ""], [1.0, 2.0], [1, 1]) == {}
