"""Chunked cross-entropy against torch's."""

import pytest
import torch
import torch.nn.functional as F

from finemesh.tuning.kernels import head
from finemesh.tuning.kernels.head import cross_entropy


@pytest.mark.parametrize("trained", ["hidden", "weight", "both"])
def test_losses_and_gradients(monkeypatch: pytest.MonkeyPatch, trained: str) -> None:
    monkeypatch.setattr(head, "CHUNK", 4)
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


def test_losses_of_bfloat16_states_are_not_rounded_to_bfloat16() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(32, 8).bfloat16(), torch.randn(64, 8).bfloat16(), torch.randint(64, (32,))
    found = cross_entropy(hidden, weight, targets)
    assert found.dtype == torch.float32
    logits = (hidden @ weight.t()).float()
    torch.testing.assert_close(found, F.cross_entropy(logits, targets, reduction="none"))
