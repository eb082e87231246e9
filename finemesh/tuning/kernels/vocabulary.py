"""A vocabulary head that trains what answers need: a row for each token that they hold, one increment for all other rows.

Of a frozen model's states h the other tokens weigh sum over j of exp(w_j h + u h) = exp(r + u h), where r = log sum exp(w_j h)
never changes: a step computes the logits of the answers' tokens and of `u` alone, and its losses are those of the whole
vocabulary (docs/decisions/020).
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils import skip_init

from finemesh.tuning.kernels.head import cross_entropy, log_sum_outside


class VocabularyHead(nn.Module):
    """Around a frozen nn.Linear. `tokens` (count,) int64, ascending; `own` has their rows, and the increment as the last one.

    A token has a row in `own` or is one of the others.
    """

    def __init__(self, base: nn.Linear, tokens: torch.Tensor) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("tokens", tokens.to(base.weight.device), persistent=False)
        self.own = nn.Linear(base.in_features, len(tokens) + 1, bias=base.bias is not None, device=base.weight.device)
        with torch.no_grad():
            for mine, frozen in zip(self.own.parameters(), base.parameters(), strict=True):
                mine[:-1] = frozen[self.tokens]
                mine[-1] = 0

    tokens: torch.Tensor

    @property
    def weight(self) -> torch.Tensor:
        """The frozen layer's, as models look at its type."""
        return self.base.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., vocabulary)"""
        own = self.own(hidden)
        logits: torch.Tensor = self.base(hidden) + own[..., -1:]
        return logits.index_copy(-1, self.tokens, own[..., :-1])

    @torch.no_grad()
    def whole(self) -> nn.Linear:
        """A plain layer in float32 that computes the same."""
        made = skip_init(nn.Linear, self.base.in_features, self.base.out_features, bias=self.base.bias is not None,
                         device=self.base.weight.device, dtype=torch.float32)
        for parameter, mine, frozen in zip(made.parameters(), self.own.parameters(), self.base.parameters(), strict=True):
            parameter.copy_(frozen).add_(mine[-1])
            parameter[self.tokens] = mine[:-1]
        return made

    def others(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of states (scored, width), before anything is trained: log sum exp of the other tokens' logits, and the loss among
        them of a target that is one of them. Both (scored,) float32."""
        return log_sum_outside(*_with_bias(hidden, self.base), self.tokens, targets)

    def losses(self, hidden: torch.Tensor, targets: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
        """(scored,) float32, nats; computed in the type of `hidden`."""
        place = torch.searchsorted(self.tokens, targets)
        outside = self.tokens[place.clamp(max=len(self.tokens) - 1)] != targets
        hidden, rows = _with_bias(hidden, self.own)
        log_sum, among = others
        losses = cross_entropy(hidden, rows[:-1], place.masked_fill(outside, len(self.tokens)),
                               log_sum + hidden.float() @ rows[-1])
        return losses + among.masked_fill(~outside, 0.0)


def _with_bias(hidden: torch.Tensor, layer: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """States and rows, one wider where the layer has a bias, so that their products have it."""
    if layer.bias is None:
        return hidden, layer.weight
    return torch.cat([hidden, hidden.new_ones(len(hidden), 1)], 1), torch.cat([layer.weight, layer.bias[:, None]], 1)
