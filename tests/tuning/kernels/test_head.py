"""Chunked cross-entropy against torch's."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from finemesh.tuning.kernels import head
from finemesh.tuning.kernels.head import cross_entropy


@pytest.mark.parametrize("trained", ["hidden", "weight", "both"])
@pytest.mark.parametrize("tile", [1, 4, 13, 20])
def test_losses_and_gradients(monkeypatch: pytest.MonkeyPatch, trained: str, tile: int) -> None:
    monkeypatch.setattr(head, "TILE", tile)
    torch.manual_seed(0)
    hidden = torch.randn(10, 8, requires_grad=trained != "weight")
    weight = torch.randn(13, 8, requires_grad=trained != "hidden")
    targets, upstream = torch.randint(13, (10,)), torch.rand(10)
    leaves = [t for t in (hidden, weight) if t.requires_grad]
    expected = F.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    found = cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad((found * upstream).sum(), leaves),
                               torch.autograd.grad((expected * upstream).sum(), leaves))


@pytest.mark.parametrize("order", [1, -1], ids=["rising", "falling"])
def test_logits_that_no_exponential_holds(monkeypatch: pytest.MonkeyPatch, order: int) -> None:
    """From -600 to 600, in either order: what a tile has added is scaled to what a later one finds."""
    monkeypatch.setattr(head, "TILE", 4)
    hidden = torch.tensor([[1.0, 0.5], [-1.0, 0.25]], requires_grad=True)
    weight = torch.stack([order * torch.linspace(-600, 600, 13), torch.linspace(0, 1, 13)], 1)
    targets = torch.tensor([12, 3])
    expected = F.cross_entropy((hidden.double() @ weight.double().t()), targets, reduction="none").float()
    found = cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), hidden), torch.autograd.grad(expected.sum(), hidden))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("token", [0, 6, 12])
def test_what_is_no_number_shows(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, token: int) -> None:
    monkeypatch.setattr(head, "TILE", 4)
    weight = torch.randn(13, 8)
    weight[token] = float("nan")
    with torch.no_grad():
        assert cross_entropy(torch.randn(3, 8).to(dtype), weight.to(dtype), torch.tensor([1, 5, 11])).isnan().all()


class Largest(TorchDispatchMode):
    """Of all tensors that are made."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.entries = max([self.entries, *(t.numel() for t in (made,) if isinstance(t, torch.Tensor))])
        return made


@pytest.mark.parametrize(("learns", "kept"), [(True, 20 * 64), (False, 20 * 4)])
def test_logits_of_a_trained_head_are_kept_only_for_a_backward_pass(monkeypatch: pytest.MonkeyPatch, learns: bool,
                                                                    kept: int) -> None:
    monkeypatch.setattr(head, "TILE", 4)
    weight = torch.randn(64, 8, requires_grad=True)
    with torch.set_grad_enabled(learns), Largest() as largest:
        cross_entropy(torch.randn(20, 8), weight, torch.randint(64, (20,)))
    assert largest.entries == max(weight.numel(), kept)


def test_losses_of_bfloat16_states_are_not_rounded_to_bfloat16() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(32, 8).bfloat16(), torch.randn(64, 8).bfloat16(), torch.randint(64, (32,))
    found = cross_entropy(hidden, weight, targets)
    assert found.dtype == torch.float32
    logits = (hidden @ weight.t()).float()
    torch.testing.assert_close(found, F.cross_entropy(logits, targets, reduction="none"))


def frozen_head(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of the losses' sum for `hidden`, and what it is in float64."""
    reads = hidden.clone().requires_grad_()
    cross_entropy(reads, weight, targets).sum().backward()
    exact = hidden.double().requires_grad_()
    F.cross_entropy(exact @ weight.double().t(), targets, reduction="sum").backward()
    assert reads.grad is not None
    assert exact.grad is not None
    return reads.grad.double(), exact.grad


def test_in_bfloat16_tokens_that_no_position_finds_likely_change_less_than_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 32).bfloat16(), torch.randn(4000, 32).bfloat16()
    hidden[:, 0], weight[:, 0] = 4, weight[:, 0] * 2  # most tokens are rare everywhere, as in a trained model
    targets = (hidden.float() @ weight.float().t() + 3 * torch.randn(300, 4000)).argmax(1)
    found, exact = frozen_head(hidden, weight, targets)
    monkeypatch.setattr(head, "NEGLIGIBLE", 2.0 ** -120)
    whole, _ = frozen_head(hidden, weight, targets)
    rounding = (whole - exact).norm() / exact.norm()
    assert 0 < (found - whole).norm() / exact.norm() < 0.5 * rounding < 0.015
    assert (found - exact).norm() / exact.norm() < 1.1 * rounding


@pytest.mark.parametrize(("dtype", "negligible", "left_out"), [
    (torch.bfloat16, 2.0, True), (torch.bfloat16, head.NEGLIGIBLE, False), (torch.float32, 2.0, False)])
def test_what_is_left_out_is_no_target_and_only_in_bfloat16(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype,
                                                            negligible: float, left_out: bool) -> None:
    """Where all is called negligible, the targets of the chunk are what remains; where little is, nothing is left out."""
    monkeypatch.setattr(head, "NEGLIGIBLE", negligible)
    monkeypatch.setattr(head, "CHUNK", 4)
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 8).to(dtype), torch.randn(50, 8).to(dtype)
    targets = torch.tensor([3, 3, 49, 0, 7, 8, 7])
    found, exact = frozen_head(hidden, weight, targets)
    if left_out:
        errors = (hidden.double() @ weight.double().t()).softmax(1) - F.one_hot(targets, 50)
        kept = torch.zeros(7, 50)
        kept[:4, [3, 49, 0]] = 1
        kept[4:, [7, 8]] = 1
        exact = (errors * kept) @ weight.double()
    torch.testing.assert_close(found, exact, rtol=0.02, atol=1e-5 if dtype == torch.float32 else 0.02)
