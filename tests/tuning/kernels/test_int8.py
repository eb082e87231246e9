"""Rounding to 8 bits row by row, exact sums of products, and what a model's losses and gradients are with it."""

import pytest
import torch

from finemesh.tuning.data.batches import collate
from finemesh.tuning.features import Features
from finemesh.tuning.kernels import scored_losses, scored_states
from finemesh.tuning.kernels.int8 import in_int8, is_int8, rounded
from tests import tiny
from tests.tuning.kernels.test_decoder import gradients, prepared

TYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", TYPES)
def test_rows_are_rounded_to_within_half_a_step(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    matrix, columns = (torch.randn(7, 33) * torch.logspace(-8, 8, 7)[:, None]).to(dtype), torch.rand(33)
    result, exact = rounded(matrix, columns), matrix.float() * columns
    assert result.values.dtype is torch.int8
    assert torch.equal(result.values.abs().amax(1), torch.full((7,), 127, dtype=torch.int8))
    error = (result.values * result.scale[:, None] - exact).abs()
    assert (error <= 0.5001 * result.scale[:, None]).all()


def test_rows_without_a_scale() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, float("nan")], [float("-inf"), 1.0], [1.0, -2.0]])
    result = rounded(rows)
    assert result.scale.isnan().tolist() == [False, True, True, False]
    assert result.scale[0] == 0
    assert result.values.tolist() == [[0, 0], [0, 0], [0, 0], [64, -127]]


@pytest.mark.parametrize("dtype", TYPES)
def test_a_product_is_that_of_the_rounded_operands(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, added = torch.randn(9, 48), torch.randn(20, 48), torch.randn(9, 20).to(dtype)
    left, right = rounded(x), rounded(weight)
    exact = (left.values.double() * left.scale[:, None]) @ (right.values.double() * right.scale[:, None]).t()
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 8e-3, "atol": 1e-3}
    for residual, expected in ((None, exact), (added, exact + added)):
        found = left.product(right.values.t(), right.scale, residual, dtype)
        torch.testing.assert_close(found.double(), expected, **tolerance)


@pytest.mark.parametrize("method", ["lora", "prompt", "prefix"])
def test_losses_and_gradients_stay_near(method: str) -> None:
    tuned, batch = prepared("llama", method)
    exact, expected = gradients(tuned, lambda: scored_losses(tuned, batch))
    with in_int8(True):
        near, found = gradients(tuned, lambda: scored_losses(tuned, batch))
    assert not torch.equal(near, exact)
    torch.testing.assert_close(near, exact, rtol=0.02, atol=0.02)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 0.1 * gradient.norm(), name


@pytest.mark.parametrize(("method", "changes"), [("full", {}), ("sift", {"rank": 2})])
def test_what_is_trained_is_computed_with_as_it_is(method: str, changes: dict[str, int]) -> None:
    tuned, batch = prepared("llama", method, **changes)
    exact, expected = gradients(tuned, lambda: scored_losses(tuned, batch))
    with in_int8(True):
        found, same = gradients(tuned, lambda: scored_losses(tuned, batch))
    assert torch.equal(found, exact)
    assert all(torch.equal(same[name], gradient) for name, gradient in expected.items())


def test_a_loss_that_is_no_number_shows() -> None:
    tuned, batch = prepared("llama", "lora")
    weight = next(p for name, p in tuned.named_parameters() if "down_proj.base" in name)
    with torch.no_grad():
        weight[0, 0] = float("nan")
    with in_int8(True):
        losses = scored_losses(tuned, batch)
    assert losses is not None
    assert losses.isnan().all()


def test_features_that_are_kept_are_computed_in_full() -> None:
    """What a head is trained on is what it is validated on."""
    model, context = tiny.case("llama", "instruct")
    batch, states = collate(list(context.encoded[:4]), 0), []
    for int8 in (False, True):
        with in_int8(int8), torch.no_grad():
            states += Features().of(batch, lambda: (scored_states(model, batch),))
        assert not is_int8()
    assert torch.equal(*states)
