"""Sharpness of a quadratic whose curvature is known."""

import pytest
import torch
from torch import nn

from finemesh.tuning.landscape.directions import Place
from finemesh.tuning.landscape.sharpness import mean_rises, worst_rise


def test_the_worst_rise_of_a_quadratic() -> None:
    """L = 1/2 c |w|^2 at |w| = 5: at distance d along the gradient, c (5 d + d^2 / 2) more."""
    weights = {"w": nn.Parameter(torch.tensor([[3.0, 4.0]]))}
    rise = worst_rise(Place(weights), lambda: 0.5 * 7.0 * weights["w"].square().sum(), 0.1)
    assert rise == pytest.approx(7.0 * (5.0 * 0.1 + 0.005), rel=1e-5)
    assert weights["w"].tolist() == [[3.0, 4.0]]


def test_the_mean_rise_at_the_bottom_of_a_quadratic() -> None:
    """L = 1/2 c |w - w0|^2 at w0: every filter-normalised step at share d rises by c d^2 |w0|^2 / 2."""
    start = torch.randn(8, 5)
    weights = {"w": nn.Parameter(start.clone(), requires_grad=False)}
    for curvature in (1.0, 10.0):
        def loss(curvature: float = curvature) -> torch.Tensor:
            return 0.5 * curvature * (weights["w"] - start).square().sum()

        rises = mean_rises(Place(weights), loss, (0, 1, 2), 0.1)
        assert rises == pytest.approx([0.5 * curvature * 0.01 * float(start.square().sum())] * 3, rel=1e-4)


def test_a_flat_place_does_not_rise() -> None:
    weights = {"w": nn.Parameter(torch.ones(2, 2))}
    assert worst_rise(Place(weights), lambda: 0.0 * weights["w"].sum()) == 0.0
