"""How much the loss rises nearby: to the worst by one ascent step (SAM, Foret et al., arXiv 2010.01412), and on average along
random filter-normalised directions (expected sharpness, Neyshabur et al., arXiv 1706.08947)."""

from collections.abc import Callable, Sequence

import torch

from finemesh.tuning.landscape.directions import Place, norm

WORST_DISTANCE = 0.05  # SAM's rho: the length of the step
MEAN_DISTANCE = 0.1  # of the length of every row of the weights


def worst_rise(place: Place, loss: Callable[[], torch.Tensor], distance: float = WORST_DISTANCE) -> float:
    """By how much the loss is higher at `distance` along its gradient."""
    for weight in place.weights.values():
        weight.requires_grad_(True)
    try:
        here = loss()
        here.backward()
        gradient = {name: weight.grad for name, weight in place.weights.items() if weight.grad is not None}
    finally:
        for weight in place.weights.values():
            weight.requires_grad_(False).grad = None
    length = norm(gradient)
    if length == 0:
        return 0.0
    return place.losses_along(gradient, [distance / length], loss)[0] - float(here.detach())


def mean_rises(place: Place, loss: Callable[[], torch.Tensor], seeds: Sequence[int],
               distance: float = MEAN_DISTANCE) -> list[float]:
    """By how much the loss is higher at `distance` along each of some random directions."""
    with torch.no_grad():
        here = float(loss())
    return [place.losses_along(place.direction("filter", seed), [distance], loss)[0] - here for seed in seeds]
