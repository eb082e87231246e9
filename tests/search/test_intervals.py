import numpy as np
import pytest

from finemesh.search.intervals import difference, interval


def test_the_loss_is_the_mean_over_runs_of_the_mean_over_tokens() -> None:
    found = interval([[1.0, 2.0], [2.0, 4.0]], [3, 1])
    assert found["loss"] == pytest.approx(((3 * 1 + 2) / 4 + (3 * 2 + 4) / 4) / 2)
    assert found["low"] <= found["loss"] <= found["high"]


def test_the_same_rows_give_the_same_interval() -> None:
    losses = np.random.default_rng(0).normal(2, 1, (3, 200)).tolist()
    assert interval(losses, [1] * 200) == interval(losses, [1] * 200)


def test_the_interval_of_one_run_is_that_of_a_mean() -> None:
    losses = np.random.default_rng(1).normal(2.0, 1.0, 400)
    found = interval([losses.tolist()], [7] * 400)
    half = 1.96 * losses.std() / 20
    assert found["low"] == pytest.approx(losses.mean() - half, abs=0.015)
    assert found["high"] == pytest.approx(losses.mean() + half, abs=0.015)


def test_it_covers_the_true_loss_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(60):
        found = interval([random.exponential(2.0, 100).tolist()], [1] * 100)
        covered += found["low"] <= 2.0 <= found["high"]
    assert 50 <= covered <= 60


def test_seeds_that_differ_widen_it() -> None:
    rows = np.random.default_rng(3).normal(2, 0.1, 100)
    near, far = (interval([(rows + shift).tolist() for shift in shifts], [1] * 100)
                 for shifts in ((0.0, 0.0, 0.0), (-0.5, 0.0, 0.5)))
    assert far["high"] - far["low"] > 5 * (near["high"] - near["low"])


def test_a_difference_over_the_same_rows_is_surer_than_two_intervals() -> None:
    rows = np.random.default_rng(4).normal(2, 1, 100)
    better, worse = [rows.tolist()], [(rows + 0.1).tolist()]
    found = difference(worse, better, [1] * 100)
    assert found["loss"] == pytest.approx(0.1)
    assert 0.09 < found["low"] <= found["high"] < 0.11
    assert interval(better, [1] * 100)["high"] > interval(worse, [1] * 100)["low"]


def test_a_difference_weighs_rows_and_runs_as_the_losses_do() -> None:
    one, other, weights = [[1.0, 2.0], [3.0, 5.0]], [[1.0, 1.0]], [1, 3]
    assert difference(one, other, weights)["loss"] == pytest.approx(
        interval(one, weights)["loss"] - interval(other, weights)["loss"])
