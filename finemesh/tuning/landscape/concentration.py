"""What share of the gradient its largest components carry. SIFT's claim: 1 % of them 99 %. Song et al., arXiv 2312.11875.

Nothing is sorted: components are counted by the upper 16 bits of their magnitude, which as numbers are in the order of the
magnitudes. Components of one such bin differ by less than 1 %, so a share is right to 1 % of what its last bin adds.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

TOPS = (0.001, 0.01, 0.05)  # of the components
BINS = 2**15
CHUNK = 2**22  # components at a time: bounds the memory

Weights = Mapping[str, torch.nn.Parameter]
Shares = dict[str, dict[str, float]]  # top ("0.01") -> squared, norm


@dataclass
class Histogram:
    """By bin of magnitude, how many components there are and what their squares add up to."""

    counts: torch.Tensor  # (BINS,) int64
    squares: torch.Tensor  # (BINS,) float64

    @staticmethod
    def of(gradient: torch.Tensor) -> "Histogram":
        found = Histogram(torch.zeros(BINS, dtype=torch.int64), torch.zeros(BINS, dtype=torch.float64))
        for part in gradient.detach().float().cpu().flatten().split(CHUNK):
            bins = part.abs().view(torch.int32) >> 16
            found.counts += torch.bincount(bins, minlength=BINS)
            found.squares += torch.bincount(bins, weights=part.double().square(), minlength=BINS)
        return found

    def __add__(self, other: "Histogram") -> "Histogram":
        return Histogram(self.counts + other.counts, self.squares + other.squares)

    def share(self, top: float) -> float:
        """Of the squared norm, what the `top` share of the components carries."""
        wanted = math.ceil(top * int(self.counts.sum()) - 1e-9)
        counts, squares = self.counts.flip(0), self.squares.flip(0)
        reached = counts.cumsum(0)
        last = int(torch.searchsorted(reached, wanted))
        before = int(reached[last] - counts[last])
        part = (wanted - before) / int(counts[last])
        return float((squares[:last].sum() + part * squares[last]) / self.squares.sum())

    def shares(self, tops: Sequence[float] = TOPS) -> Shares:
        """`squared` of the squared norm, `norm` of the norm itself: ||largest components|| / ||all||."""
        found = {top: self.share(top) for top in tops}
        return {f"{top:g}": {"squared": share, "norm": math.sqrt(share)} for top, share in found.items()}


def concentration(weights: Weights, losses: Iterable[Callable[[], torch.Tensor]],
                  groups: Mapping[str, Sequence[str]]) -> tuple[list[dict[str, Shares]], dict[str, Shares]]:
    """Shares by matrix and by group of matrices: of each loss's gradient, and of the gradient of their sum.

    A matrix without a gradient has no shares. Holds the gradient twice; leaves the weights without one.
    """
    totals: dict[str, torch.Tensor] = {}
    each = []
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        for loss in losses:
            loss().backward()
            gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
            each.append(_shares(gradients, groups))
            for name, gradient in gradients.items():
                if name in totals:
                    totals[name] += gradient
                else:
                    totals[name] = gradient
                weights[name].grad = None
    finally:
        for weight in weights.values():
            weight.requires_grad_(False).grad = None
    return each, _shares(totals, groups)


def _shares(gradients: Mapping[str, torch.Tensor], groups: Mapping[str, Sequence[str]]) -> dict[str, Shares]:
    counted = {name: Histogram.of(gradient) for name, gradient in gradients.items()}
    for group, names in groups.items():
        members = [counted[name] for name in names if name in counted]
        if members:
            counted[group] = sum(members[1:], start=members[0])
    return {name: histogram.shares() for name, histogram in counted.items() if histogram.squares.sum() > 0}
