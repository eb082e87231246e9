"""A linear layer whose weight has a trained sparse increment: W + scatter(delta). Song et al., arXiv 2312.11875.

The increment is folded into the weight in place, so that the layer computes what a plain one does and costs no copy. The
weight may be bfloat16: its entries are rounded from float32 sums of what they were and the increment, so no update is lost.
"""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from finemesh.tuning.kernels.projections import Parts, Sparse, project
from finemesh.tuning.kernels.sampled import Entries


class SparseLinear(nn.Module):
    """Around a frozen nn.Linear, or a Conv1D (GPT-2's), whose weight is stored (in, out)."""

    def __init__(self, base_layer: nn.Module, flat: torch.Tensor) -> None:
        """`flat` (count,) int32, ascending: the trained entries' places in the stored weight."""
        super().__init__()
        self.base_layer = base_layer
        self.delta = nn.Parameter(torch.zeros(len(flat), dtype=torch.float32, device=self.weight.device))
        self.register_buffer("before", torch.empty(0), persistent=False)  # the entries as they were
        self.first: torch.Tensor | None = None  # (count,) the calibration's gradient
        self.take(flat)

    before: torch.Tensor
    entries: Entries

    @property
    def weight(self) -> torch.Tensor:
        weight: torch.Tensor = self.base_layer.weight  # type: ignore[assignment]
        return weight

    def parts(self) -> Parts:
        transposed = isinstance(self.base_layer, Conv1D)
        bias: torch.Tensor | None = self.base_layer.bias  # type: ignore[assignment]
        return Parts(self.weight.t() if transposed else self.weight, bias, sparse=Sparse(self.delta, self.entries, transposed))

    @torch.no_grad()
    def take(self, flat: torch.Tensor) -> None:
        """Train these entries, as they stand in the weight."""
        rows, columns = self.weight.shape
        self.entries = Entries(flat.to(self.weight.device, torch.int32), (rows, columns))
        self.before = self.weight.data.view(-1).index_select(0, self.entries.flat)

    @torch.no_grad()
    def fold(self) -> None:
        """Bring the weight up to date with the increment."""
        self._write((self.before.float() + self.delta).to(self.weight.dtype))

    @torch.no_grad()
    def unfold(self) -> None:
        """The weight as it was, bit by bit."""
        self._write(self.before)

    def _write(self, values: torch.Tensor) -> None:
        self.weight.data.view(-1).index_copy_(0, self.entries.flat.long(), values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            (y,) = project(x.reshape(-1, x.size(-1)), [self])
        return y.view(*x.shape[:-1], -1)
