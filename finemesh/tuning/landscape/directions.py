"""The loss along random directions in the space of the weight matrices. Li et al., arXiv 1712.09913.

`filter`: every row of a matrix (what makes one output; where it is stored transposed, as GPT-2's, every column) gets the length
of the weights' own, so that 1 is as far as the weights are large.
`unit`: one Gaussian direction of length 1 over all matrices, so that the position is the distance. Vectors (biases, gains of
norms) stay.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch

from finemesh.tuning.landscape.concentration import Weights

Normalisation = Literal["filter", "unit"]
NORMALISATIONS: tuple[Normalisation, ...] = ("filter", "unit")
Direction = Mapping[str, torch.Tensor]


class Place:
    """Where the weights are; `moved` takes them elsewhere for a while and puts them back bit for bit."""

    def __init__(self, weights: Weights, transposed: Collection[str] = ()) -> None:
        self.weights, self._transposed = weights, transposed
        self._here = {name: weight.detach().clone() for name, weight in weights.items()}

    @property
    def norm(self) -> float:
        return norm(self._here)

    @contextmanager
    def moved(self, direction: Direction, distance: float) -> Iterator[None]:
        try:
            for name, step in direction.items():
                torch.add(self._here[name], step, alpha=distance, out=self.weights[name].data)
            yield
        finally:
            for name in direction:
                self.weights[name].data.copy_(self._here[name])

    def direction(self, normalisation: Normalisation, seed: int) -> Direction:
        generator = torch.Generator().manual_seed(seed)
        drawn = {name: torch.randn(here.shape, generator=generator).to(here) for name, here in self._here.items()}
        if normalisation == "unit":
            length = norm(drawn)
            return {name: step.div_(length) for name, step in drawn.items()}
        for name, step in drawn.items():
            here, step = ((t.t() if name in self._transposed else t).flatten(1) for t in (self._here[name], step))
            step.mul_(here.norm(dim=1, keepdim=True) / step.norm(dim=1, keepdim=True).clamp(min=1e-12))
        return drawn

    @torch.no_grad()
    def losses_along(self, direction: Direction, distances: Sequence[float],
                     loss: Callable[[], torch.Tensor]) -> list[float]:
        found = []
        for distance in distances:
            with self.moved(direction, distance):
                found.append(float(loss()))
        return found


def norm(tensors: Mapping[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def amplitude(losses: Sequence[float]) -> float:
    """From the lowest loss to the highest."""
    return max(losses) - min(losses)


def oscillation(losses: Sequence[float]) -> float:
    """The way up and down along the curve beyond what a single valley needs: 0 where the loss falls, then rises."""
    way = sum(abs(b - a) for a, b in itertools.pairwise(losses))
    return max(0.0, way - (losses[0] + losses[-1] - 2 * min(losses)))


def local_minima(losses: Sequence[float]) -> int:
    """Points lower than both neighbours, the ends not counted."""
    return sum(b < a and b < c for a, b, c in zip(losses, losses[1:], losses[2:], strict=False))
