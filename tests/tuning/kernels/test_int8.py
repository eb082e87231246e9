"""Rounding to 8 bits row by row, exact sums of products, and what a model's losses and gradients are with it."""

import pytest
import torch

from finemesh.tuning.data.batches import collate
from finemesh.tuning.features import Features
from finemesh.tuning.kernels import scored_losses, scored_states
from finemesh.tuning.kernels.head import cross_entropy
from finemesh.tuning.kernels.int8 import in_int8, products_in_int8, rounded
from finemesh.tuning.precision import Int8
from tests import tiny
from tests.tuning.kernels.test_decoder import gradients, prepared

PRODUCTS: tuple[Int8, ...] = ("no", "all")
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
@pytest.mark.parametrize(("products", "apart"), [("all", 0.1), ("gradients", 0.03)])
def test_losses_and_gradients_stay_near(method: str, products: Int8, apart: float) -> None:
    tuned, batch = prepared("llama", method)
    exact, expected = gradients(tuned, lambda: scored_losses(tuned, batch))
    with in_int8(products):
        near, found = gradients(tuned, lambda: scored_losses(tuned, batch))
    assert torch.equal(near, exact) is (products == "gradients")
    torch.testing.assert_close(near, exact, rtol=0.02, atol=0.02)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < apart * gradient.norm(), name
    assert any(not torch.equal(found[name], gradient) for name, gradient in expected.items())


@pytest.mark.parametrize(("method", "changes"), [("full", {}), ("sift", {"rank": 2})])
def test_the_forward_pass_of_trained_weights_is_in_full(method: str, changes: dict[str, int]) -> None:
    tuned, batch = prepared("llama", method, **changes)
    exact, expected = gradients(tuned, lambda: scored_losses(tuned, batch))
    with in_int8("all"):
        found, near = gradients(tuned, lambda: scored_losses(tuned, batch))
    assert torch.equal(found, exact)
    for name, gradient in expected.items():
        assert (near[name] - gradient).norm() < 0.03 * gradient.norm(), name


def test_a_frozen_head_s_small_probabilities_count_beside_the_target() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = 0.3 * torch.randn(9, 16), torch.randn(500, 16), torch.randint(500, (9,))
    hidden.requires_grad_()
    exact = cross_entropy(hidden, weight, targets)
    (expected,) = torch.autograd.grad(exact.sum(), hidden)
    with in_int8("gradients"):
        found = cross_entropy(hidden, weight, targets)
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    assert torch.equal(found, exact)
    assert not torch.equal(gradient, expected)
    assert (gradient - expected).norm() < 0.01 * expected.norm()


def test_a_loss_that_is_no_number_shows() -> None:
    tuned, batch = prepared("llama", "lora")
    weight = next(p for name, p in tuned.named_parameters() if "down_proj.base" in name)
    with torch.no_grad():
        weight[0, 0] = float("nan")
    with in_int8("all"):
        losses = scored_losses(tuned, batch)
    assert losses is not None
    assert losses.isnan().all()


def test_features_that_are_kept_are_computed_in_full() -> None:
    """What a head is trained on is what it is validated on."""
    model, context = tiny.case("llama", "instruct")
    batch, states = collate(list(context.encoded[:4]), 0), []
    for products in PRODUCTS:
        with in_int8(products), torch.no_grad():
            states += Features().of(batch, lambda: (scored_states(model, batch),))
        assert products_in_int8() == "no"
    assert torch.equal(*states)
