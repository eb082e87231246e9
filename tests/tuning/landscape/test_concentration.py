"""Shares of gradients that are known."""

import math

import pytest
import torch
from torch import nn

from finemesh.tuning.landscape.concentration import Histogram, concentration


@pytest.mark.parametrize("top", [0.001, 0.01, 0.05, 0.5, 1.0])
def test_a_share_is_that_of_the_sorted_components(top: float) -> None:
    torch.manual_seed(0)
    gradient = torch.randn(300, 400) * torch.randn(300, 400).exp() * 1e-6
    squares = gradient.double().flatten().square().sort(descending=True).values
    expected = float(squares[:math.ceil(top * squares.numel())].sum() / squares.sum())
    assert Histogram.of(gradient).share(top) == pytest.approx(expected, rel=2e-3)


def test_equal_components_carry_what_they_are() -> None:
    shares = Histogram.of(torch.full((100, 100), -3.0)).shares((0.01, 0.25))
    assert shares["0.01"] == pytest.approx({"squared": 0.01, "norm": 0.1})
    assert shares["0.25"] == pytest.approx({"squared": 0.25, "norm": 0.5})


def test_one_component_carries_all() -> None:
    gradient = torch.zeros(100, 10)
    gradient[3, 4] = 1e-20
    assert Histogram.of(gradient).share(0.001) == 1.0


def test_groups_and_sums_over_losses() -> None:
    """Two losses pull at different entries: each alone moves one, their sum two of unequal size."""
    a, b = nn.Parameter(torch.zeros(10, 10)), nn.Parameter(torch.zeros(10, 10))
    unused = nn.Parameter(torch.zeros(2, 2))
    losses = [lambda: 3 * a[0, 0] + 4 * b[0, 0], lambda: 3 * a[1, 1] + 0 * b.sum()]
    each, together = concentration({"a": a, "b": b, "unused": unused}, losses, {"all": ["a", "b", "unused"]})
    assert each[0]["all"]["0.01"]["squared"] == pytest.approx(1.0)  # two of the 200 entries
    assert each[0]["all"]["0.001"]["squared"] == pytest.approx(16 / 25)
    assert "b" not in each[1]
    assert together["a"]["0.01"]["squared"] == pytest.approx(0.5)
    assert together["all"]["0.001"]["squared"] == pytest.approx(16 / 34)
    assert "unused" not in together
    assert all(weight.grad is None and not weight.requires_grad for weight in (a, b, unused))
