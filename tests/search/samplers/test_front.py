import math

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume

from finemesh.search.samplers.front import REFERENCE, Front, dominating, nondominated
from finemesh.search.samplers.record import Record


def record(number: int, *losses: float, **violations: float) -> Record:
    return Record(number, {}, {}, "complete", losses[0], violations, losses[1:])


def test_what_dominates_is_nowhere_worse_and_somewhere_better() -> None:
    losses = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0], [2.0, 2.0]])
    assert dominating(losses).tolist() == [0, 0, 2, 2, 4]


def test_counts_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of ties, copies and infinite losses."""
    monkeypatch.setattr("finemesh.search.samplers.front.BITS", 64)
    rng = np.random.default_rng(0)
    for objectives in (1, 2, 3, 4):
        for size, values in ((1, 2), (64, 3), (65, 9), (200, 1000)):
            losses = rng.integers(-values, values, (size, objectives)).astype(float)
            for special in (np.inf, -0.0):
                losses[rng.random(losses.shape) < 0.1] = special
            no_worse = (losses[:, None] <= losses).all(axis=2)
            assert dominating(losses).tolist() == (no_worse & (losses[:, None] < losses).any(axis=2)).sum(axis=0).tolist()


def test_the_front_is_of_feasible_points_or_the_least_infeasible_one() -> None:
    infeasible = [record(0, 0.0, 0.0, memory=2.0), record(1, 5.0, 5.0, memory=1.0)]
    assert [one.number for one in nondominated(infeasible)] == [1]
    told = [*infeasible, record(2, 1.0, 3.0, memory=-1.0), record(3, 3.0, 1.0), record(4, 3.0, 2.0),
            Record(5, {}, {}, "failed", math.inf, {}, (math.inf,))]
    assert [one.number for one in nondominated(told)] == [2, 3]


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_the_mean_over_directions_is_the_hypervolume(objectives: int) -> None:
    """Of corners and a middle point; up to the constant that all hypervolumes of so many objectives share."""
    corners = [record(index, *(float(index != axis) for axis in range(objectives))) for index in range(objectives)]
    shares = []
    for middle in (0.2, 0.5, 0.7):
        told = [*corners, record(9, *[middle] * objectives)]
        front = Front(told)
        points = front.scaled(np.array([one.losses for one in told]))
        shares.append(front.volumes(told).mean() / compute_hypervolume(points, np.full(objectives, REFERENCE)))
    assert max(shares) / min(shares) == pytest.approx(1, abs=0.2)


def test_the_further_beyond_the_front_the_better_and_what_is_believed_counts() -> None:
    front = Front([record(0, 0.0, 1.0), record(1, 1.0, 0.0), record(2, 0.6, 0.6)])
    points = front.scaled(np.array([[0.2, 0.2], [0.4, 0.4], [0.6, 0.6], [0.9, 0.9], [3.0, 3.0]]))
    gains = front.log_improvement(points, np.full_like(points, 1e-3))
    assert (np.diff(gains) < 0).all()
    unsure = front.log_improvement(points, np.full_like(points, 0.3))
    assert unsure[3] > gains[3]
    front.believe(points[:1])
    assert front.log_improvement(points, np.full_like(points, 1e-3))[1] < gains[2] + 1.0


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_points_that_are_far_from_any_gain_are_in_order_too(objectives: int) -> None:
    corners = [record(index, *(float(index != axis) for axis in range(objectives))) for index in range(objectives)]
    far = np.linspace(3.0, 100.0, 8)[:, None] * np.ones(objectives)
    assert (np.diff(Front(corners).log_improvement(far, np.full_like(far, 1e-3))) < 0).all()


def test_scales_are_the_fronts_whatever_the_units() -> None:
    told = [record(0, 1.0, 3e9), record(1, 2.0, 1e9), record(2, 1e30, 9e9), record(3, 3.0, 2e9)]
    scaled = Front(told).scaled(np.array([one.losses for one in told]))
    assert scaled[:2].tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert np.isfinite(scaled).all()
