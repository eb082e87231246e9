"""Directions of known length on losses of known shape."""

import pytest
import torch
from torch import nn

from finemesh.tuning.data.batches import collate
from finemesh.tuning.landscape.directions import Place, amplitude, local_minima, norm, oscillation
from finemesh.tuning.landscape.measurement import _Look
from tests import tiny
from tests.contracts.test_families import model_of


@pytest.fixture
def weights() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {"a": nn.Parameter(torch.randn(6, 5), requires_grad=False),
            "b": nn.Parameter(torch.randn(4, 3, 2), requires_grad=False)}


def test_a_unit_direction_has_length_one_over_all_matrices(weights) -> None:
    assert norm(Place(weights).direction("unit", 0)) == pytest.approx(1.0, rel=1e-5)


def test_a_filter_direction_is_row_by_row_as_long_as_the_weights(weights) -> None:
    direction = Place(weights).direction("filter", 0)
    for name, weight in weights.items():
        assert torch.allclose(direction[name].flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))


def test_the_filters_of_gpt2_are_the_columns_that_it_stores() -> None:
    """What makes one output, as in other models; rows are those of one input there."""
    model, context = tiny.case("gpt2", "instruct")
    look = _Look(model, "instruct", [collate(context.encoded[:2], 0)], [0])
    direction = look.place.direction("filter", 0)
    for name, weight in look.weights.items():
        dim = 0 if ".attn.c_" in name or ".mlp.c_" in name else 1
        assert torch.allclose(direction[name].norm(dim=dim), weight.norm(dim=dim), rtol=1e-4), name


def test_what_sees_stays_where_it_is() -> None:
    model, task = model_of("seeing gemma3")
    look = _Look(model, task, [], [])
    assert look.weights.keys() == {name for name, weight in model.named_parameters()
                                   if weight.ndim > 1 and "language_model." in name}


@pytest.mark.parametrize("normalisation", ["unit", "filter"])
def test_directions_are_those_of_their_seed(weights, normalisation) -> None:
    place = Place(weights)
    first, again, other = (place.direction(normalisation, seed)["a"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_quadratic_along_a_unit_direction(weights) -> None:
    """L = 1/2 |w - w0|^2 rises by half the squared distance, whatever the direction."""
    here = {name: weight.clone() for name, weight in weights.items()}
    place = Place(weights)
    losses = place.losses_along(place.direction("unit", 3), [-2.0, 0.0, 1.0], lambda: sum(
        0.5 * (weight - here[name]).square().sum() for name, weight in weights.items()))
    assert losses == pytest.approx([2.0, 0.0, 0.5], abs=1e-5)


def test_the_weights_are_back_bit_for_bit_also_after_an_error(weights) -> None:
    before = {name: weight.clone() for name, weight in weights.items()}
    place = Place(weights)
    direction = place.direction("filter", 0)
    with place.moved(direction, 0.3):
        assert not torch.equal(weights["a"], before["a"])
    with pytest.raises(RuntimeError), place.moved(direction, 0.3):
        raise RuntimeError
    assert all(torch.equal(weights[name], before[name]) for name in weights)


@pytest.mark.parametrize(("losses", "high", "oscillates", "minima"), [
    ([3.0, 1.0, 0.0, 2.0, 5.0], 5.0, 0.0, 1),
    ([3.0, 2.0, 1.0], 2.0, 0.0, 0),
    ([1.0, 0.0, 1.0, 0.0, 1.0], 1.0, 2.0, 2),
    ([0.0, 1.0, 0.0], 1.0, 2.0, 0),
    ([2.0, 2.0, 2.0], 0.0, 0.0, 0),
])
def test_what_is_said_of_a_curve(losses, high, oscillates, minima) -> None:
    assert (amplitude(losses), oscillation(losses), local_minima(losses)) == (high, oscillates, minima)
