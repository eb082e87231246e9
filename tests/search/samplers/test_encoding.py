import math

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from finemesh.search.samplers.encoding import Box, Dimension

DISTRIBUTIONS = [
    FloatDistribution(-2.0, 3.0), FloatDistribution(1e-6, 1.0, log=True), FloatDistribution(0.0, 0.3, step=0.1),
    IntDistribution(1, 9), IntDistribution(0, 100, step=5), IntDistribution(2, 512, log=True),
    CategoricalDistribution(["a", None, 3, True]),
]


def dimension(distribution: BaseDistribution, choices: tuple[int, ...] | None = None) -> Dimension:
    if isinstance(distribution, CategoricalDistribution):
        return Dimension("x", distribution, tuple(range(len(distribution.choices))) if choices is None else choices)
    return Dimension("x", distribution)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
def test_values_lie_in_the_distribution_and_come_back(distribution: BaseDistribution) -> None:
    one = dimension(distribution)
    for uniform in np.linspace(0, 0.999999, 57):
        value = one.value(one.sampled(uniform))
        assert distribution._contains(distribution.to_internal_repr(value))
        coordinate = one.coordinate(value)
        assert coordinate is not None
        assert one.value(coordinate) == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value)


def test_logarithmic_floats_are_even_in_the_logarithm() -> None:
    one = dimension(FloatDistribution(1e-6, 1e-2, log=True))
    assert one.value(0.5) == pytest.approx(1e-4)
    assert one.coordinate(1e-3) == pytest.approx(0.75)


def test_logarithmic_floats_whose_ratio_is_too_large_for_a_number() -> None:
    one = dimension(FloatDistribution(1e-200, 1e200, log=True))
    assert one.value(0.75) == pytest.approx(1e100)
    assert [one.coordinate(value) for value in (1e-100, 1e150, 1e200)] == [0.25, 0.875, 1.0]


def test_both_ends_are_reached_exactly() -> None:
    for distribution in DISTRIBUTIONS[:2]:
        one = dimension(distribution)
        assert (one.value(0.0), one.value(1.0)) == (distribution.low, distribution.high)


def test_every_value_of_a_grid_is_sampled_alike() -> None:
    one = dimension(IntDistribution(0, 20, step=5))
    values = [one.value(one.sampled(uniform)) for uniform in (np.arange(100) + 0.5) / 100]
    assert {value: values.count(value) for value in set(values)} == dict.fromkeys([0, 5, 10, 15, 20], 20)


def test_a_choice_of_another_structure_has_no_coordinate() -> None:
    one = dimension(CategoricalDistribution(["a", "b", "c"]), choices=(0, 2))
    assert [one.coordinate(choice) for choice in "abc"] == [0.0, None, 1.0]
    assert one.value(1.0) == "c"


def test_a_value_out_of_range_has_no_coordinate() -> None:
    assert dimension(FloatDistribution(0, 1)).coordinate(1.5) is None
    assert dimension(IntDistribution(1, 4)).coordinate(0) is None


def test_how_many_values() -> None:
    counts = [dimension(distribution).count for distribution in DISTRIBUTIONS]
    assert counts == [math.inf, math.inf, 4, 9, 21, 511, 4]


@pytest.fixture
def box() -> Box:
    return Box((Dimension("method", CategoricalDistribution(["a", "b", "c"]), (0, 1, 2)),
                Dimension("rank", IntDistribution(1, 4, log=True)), Dimension("rate", FloatDistribution(0, 1))),
               (("kind", "x"),))


def test_equal_points_have_equal_coordinates(box: Box) -> None:
    one, other = box.snapped((1.0, 0.49, 0.25)), box.snapped((1.0, 0.51, 0.25))
    assert one == other
    assert box.values(one) == {"kind": "x", "method": "b", "rank": 2, "rate": 0.25}


def test_the_fixed_values_are_part_of_the_point(box: Box) -> None:
    point = {"kind": "x", "method": "b", "rank": 2, "rate": 0.25}
    assert box.coordinates(point) == (1.0, 0.5, 0.25)
    assert box.coordinates(point | {"kind": "y"}) is None
    assert box.coordinates({"kind": "x", "method": "b"}) is None
    assert box.completed({"kind": "y", "method": "b"}) == (1.0, 0.5, 0.5)


def test_two_choices_lie_one_apart(box: Box) -> None:
    features = box.features([(0.0, 0.0, 0.0), (2.0, 0.0, 0.0), (0.0, 1.0, 0.0)])
    assert box.feature_blocks == (3, 1, 1)
    assert features.shape == (3, 5)
    distances = np.linalg.norm(features[1:] - features[0], axis=1)
    assert distances == pytest.approx([1.0, 1.0])
