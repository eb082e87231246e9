import numpy as np
import pytest

from finemesh.search.intervals import difference, interval, seed_variance


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


def within(found: dict[str, float], truth: float) -> bool:
    return found["low"] <= truth <= found["high"]


@pytest.mark.parametrize("seeds", [2, 3])
def test_a_few_seeds_that_decide_cover_the_truth_where_others_are_beside_them(seeds: int) -> None:
    """Drawing from the runs themselves, which never leaves their range, covered it in 50 and in 75 %."""
    random = np.random.default_rng(5)
    alone, beside, of_differences = [], [], []
    for _ in range(40):
        groups = [np.repeat(random.normal(2.0, deviation, (seeds, 1)), 4, axis=1).tolist()
                  for deviation in (0.1, 0.2, 0.1, 0.05)]
        prior = seed_variance(groups, [1] * 4)
        assert prior is not None
        alone += [interval(group, [1] * 4) for group in groups]
        beside += [interval(group, [1] * 4, prior=prior) for group in groups]
        of_differences += [difference(group, groups[0], [1] * 4, prior=prior) for group in groups[1:]]
    assert np.mean([within(found, 2.0) for found in alone]) > 0.9
    assert np.mean([within(found, 2.0) for found in beside]) > 0.88
    assert np.mean([within(found, 0.0) for found in of_differences]) > 0.88
    widths = [np.mean([found["high"] - found["low"] for found in founds]) for founds in (alone, beside)]
    assert widths[0] > (1.2 if seeds == 3 else 3) * widths[1]


def test_the_seeds_of_others_move_nothing_that_no_seed_moves() -> None:
    same, moved = [[1.0, 2.0]] * 3, [[1.0, 2.0], [1.1, 2.1], [1.3, 2.3]]
    assert interval(same, [1, 1], prior=0.5) == interval(same[:1], [1, 1])
    assert seed_variance([same, moved, same[:1]], [1, 1]) is None
    assert seed_variance([moved, same, moved], [1, 1]) == seed_variance([moved, moved], [1, 1])


def test_the_variance_of_many_groups_is_that_of_a_seed() -> None:
    random = np.random.default_rng(6)
    groups = [(2.0 + 0.1 * random.normal(size=(3, 1)) + np.zeros(2)).tolist() for _ in range(400)]
    scale = seed_variance(groups, [1, 3])
    assert scale == pytest.approx(0.01 * np.exp(0.4228 - np.log(2)), rel=0.12)  # less, as a prior's mean is above its scale


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
