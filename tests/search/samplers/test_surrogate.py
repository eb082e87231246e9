import numpy as np
import pytest
from scipy.optimize import check_grad

from finemesh.search.samplers import surrogate


@pytest.fixture
def points() -> np.ndarray:  # (30, 3)
    return np.random.default_rng(0).random((30, 3))


def targets(points: np.ndarray) -> np.ndarray:
    return 100 + 5 * (points[:, 0] - 0.3) ** 2 + 2 * np.sin(3 * points[:, 1])


def test_gradient(points: np.ndarray) -> None:
    squared = ((points[:, None, :] - points[None, :, :]) ** 2).transpose(2, 0, 1)
    standard = (targets(points) - targets(points).mean()) / targets(points).std()

    def posterior(theta: np.ndarray) -> tuple[float, np.ndarray]:
        return surrogate._negative_log_posterior(theta, squared, standard)

    theta = np.log([0.4, 0.7, 1.5, 0.8, 0.01])
    error = check_grad(lambda t: posterior(t)[0], lambda t: posterior(t)[1], theta)
    assert error < 1e-3 * np.linalg.norm(posterior(theta)[1])


def test_predicts_between_the_points_and_knows_what_it_knows(points: np.ndarray) -> None:
    process = surrogate.fit(points, targets(points), (1, 1, 1))
    means, deviations = process.predict(points)
    assert means == pytest.approx(targets(points), abs=0.02)
    new = np.random.default_rng(1).random((50, 3)) * 0.8 + 0.1
    assert np.sqrt(np.mean((process.predict(new)[0] - targets(new)) ** 2)) < 0.1 * targets(points).std()
    far = process.predict(np.array([[3.0, 3.0, 3.0]]))[1]
    assert far > 3 * deviations.max()


def test_the_idle_dimension_gets_the_longest_scale(points: np.ndarray) -> None:
    process = surrogate.fit(points, targets(points), (1, 1, 1))
    assert process.lengths.argmax() == 2


def test_believing_lowers_the_deviation_and_not_the_mean(points: np.ndarray) -> None:
    process = surrogate.fit(points, targets(points), (1, 1, 1))
    there = np.array([[0.95, 0.05, 0.5]])
    believing = process.believing(there)
    assert believing.predict(there)[0] == pytest.approx(process.predict(there)[0], rel=1e-3)
    assert believing.predict(there)[1] < 0.5 * process.predict(there)[1]


def test_one_point_and_equal_targets_are_enough() -> None:
    for count in (1, 3):
        process = surrogate.fit(np.random.default_rng(0).random((count, 2)), np.full(count, 7.0), (1, 1))
        assert process.predict(np.array([[0.5, 0.5]]))[0] == pytest.approx(7.0)


def test_expected_improvement_is_that_of_samples_and_has_a_tail() -> None:
    samples = np.random.default_rng(0).normal(1.0, 2.0, 400_000)
    value = surrogate.log_expected_improvement(np.array([1.0]), np.array([2.0]), 0.5)
    assert np.exp(value) == pytest.approx(np.maximum(0.5 - samples, 0).mean(), rel=0.02)
    far = surrogate.log_expected_improvement(np.array([4.9, 5.1, 50.0]), np.ones(3), 0.0)
    assert np.isfinite(far).all()
    assert (np.diff(far) < 0).all()


def test_compressed_keeps_the_order_and_the_lower_half() -> None:
    losses = np.array([1.0, 1.2, 1.1, 1.5, 900.0])
    bent = surrogate.compressed(losses)
    assert (bent.argsort() == losses.argsort()).all()
    assert (bent[[0, 1, 2]] == losses[[0, 1, 2]]).all()
    assert bent.max() < 5
