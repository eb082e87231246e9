"""The vocabulary head by its answers' tokens against the whole head with the same weights, by torch's own cross-entropy."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finemesh.tuning.kernels import head as module
from finemesh.tuning.kernels.vocabulary import VocabularyHead

TOKENS = torch.tensor([2, 3, 7, 11])
TARGETS = torch.tensor([2, 11, 3, 0, 12, 7, 2, 8, 3, 11])  # three of them among the others


def changed(tokens: torch.Tensor = TOKENS, bias: bool = False) -> VocabularyHead:
    """A head of 13 tokens that has been trained for a while."""
    torch.manual_seed(0)
    head = VocabularyHead(nn.Linear(8, 13, bias=bias).requires_grad_(False), tokens)
    with torch.no_grad():
        for parameter in head.own.parameters():
            parameter += torch.randn_like(parameter)
    return head


def gradients(head: VocabularyHead, losses: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad((losses * torch.linspace(0.5, 2, len(losses))).sum(), list(head.own.parameters()))


@pytest.mark.parametrize("tokens", [TOKENS, torch.arange(13), torch.tensor([12])], ids=["some", "all", "the last"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_losses_and_gradients_are_those_of_the_whole_vocabulary(monkeypatch: pytest.MonkeyPatch, tokens: torch.Tensor,
                                                                bias: bool) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr(module, "TILE", 4)
    head, hidden = changed(tokens, bias), torch.randn(10, 8)
    logits = head(hidden)
    expected = F.cross_entropy(logits, TARGETS, reduction="none")
    found = head.losses(hidden, TARGETS, head.others(hidden, TARGETS))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(head.losses(hidden, TARGETS, head.others(hidden, TARGETS)), expected)
    torch.testing.assert_close(gradients(head, found), gradients(head, expected))
    torch.testing.assert_close(head.whole()(hidden), logits)
    assert [p.shape for p in head.whole().parameters()] == [p.shape for p in head.base.parameters()]


def test_untrained_it_is_the_frozen_layer() -> None:
    torch.manual_seed(0)
    base = nn.Linear(8, 13, bias=False).requires_grad_(False)
    head, hidden = VocabularyHead(base, TOKENS), torch.randn(10, 8)
    torch.testing.assert_close(head(hidden), base(hidden))
    assert torch.equal(head.whole().weight, base.weight)


def test_all_other_tokens_move_together_and_no_more_is_trained() -> None:
    head = changed()
    moved = head.whole().weight - head.base.weight
    others = [token for token in range(13) if token not in TOKENS]
    assert all(torch.allclose(moved[token], head.own.weight[-1], atol=1e-6) for token in others)
    assert torch.equal(head.whole().weight[TOKENS], head.own.weight[:-1])
    assert sum(p.numel() for p in head.parameters() if p.requires_grad) == 5 * 8


def test_the_others_weigh_as_much_as_in_float32_where_states_are_bfloat16() -> None:
    """Their logits are of bfloat16, as everywhere; the sum of 4,000 of them is not."""
    torch.manual_seed(0)
    base = nn.Linear(32, 4000, bias=False).requires_grad_(False)
    head, hidden, targets = VocabularyHead(base, TOKENS), torch.randn(64, 32).bfloat16(), torch.randint(4000, (64,))
    found = head.losses(hidden, targets, head.others(hidden, targets))
    expected = F.cross_entropy((hidden @ base.weight.bfloat16().t()).float(), targets, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_on_other_devices_torch_s_own_operations_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    head, hidden = changed(), torch.randn(10, 8)
    found = head.losses(hidden, TARGETS, head.others(hidden, TARGETS))
    here: Any = module.on_processor
    monkeypatch.setattr(module, "on_processor", lambda tensor: not here(tensor))
    elsewhere = head.losses(hidden, TARGETS, head.others(hidden, TARGETS))
    torch.testing.assert_close(elsewhere, found)
    torch.testing.assert_close(gradients(head, elsewhere), gradients(head, found))


@pytest.mark.parametrize("where", ["row", "increment"])
def test_what_is_no_number_shows(where: str) -> None:
    head, hidden = changed(), torch.randn(10, 8)
    with torch.no_grad():
        head.own.weight[0 if where == "row" else -1] = float("nan")
    assert head.losses(hidden, TARGETS, head.others(hidden, TARGETS)).isnan().all()
