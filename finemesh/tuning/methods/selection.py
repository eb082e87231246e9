"""Which entries of the weights a sparse method trains: the highest scores, within each matrix or over all of them.

Scores are never negative. Song et al. (arXiv 2312.11875) take |gradient|; |gradient * weight| is the loss's first-order change
when the entry is taken out (Molchanov et al., arXiv 1906.10771).
"""

from collections.abc import Mapping

import torch

Scores = Mapping[str, torch.Tensor]


def score(kind: str, weight: torch.Tensor, gradient: torch.Tensor | None) -> torch.Tensor:
    """(out * in,) float32. `kind`: gradient, gradient_weight, magnitude or random (drawn from torch's global generator)."""
    if kind == "random":
        return torch.rand(weight.numel(), device=weight.device)
    if kind == "magnitude":
        return weight.detach().reshape(-1).float().abs()
    assert gradient is not None
    product = gradient if kind == "gradient" else gradient.float() * weight.detach()
    return product.reshape(-1).float().abs()


def highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` indices with the highest scores, ascending, int32."""
    return torch.topk(scores, count, sorted=False).indices.sort().values.int()


def highest_overall(scores: Scores, count: int) -> dict[str, torch.Tensor]:
    """`count` entries: the best of every matrix, then the highest of all together. Of equal scores the first ones.

    The threshold is found by bisection on the bits of the floats, which order as the floats do: nothing is copied or sorted.
    """
    bits = {name: values.contiguous().view(torch.int32) for name, values in scores.items()}
    low, high = 0, 0x7F800000  # at least `count` are >= low or their matrix's best, with high fewer
    while high - low > 1:
        middle = (low + high) // 2
        if sum(max(1, int((values >= middle).sum())) for values in bits.values()) >= count:
            low = middle
        else:
            high = middle
    found = {name: (values > low).nonzero()[:, 0] for name, values in bits.items()}
    left = count - sum(max(1, len(indices)) for indices in found.values())
    for name, values in bits.items():
        best = int(not len(found[name]))  # 1 where the best is not above the threshold: it is counted already
        equal = (values == low).nonzero()[:left + best, 0]
        left -= max(0, len(equal) - best)
        chosen = torch.cat([found[name], equal]).sort().values
        found[name] = (chosen if len(chosen) else values.argmax()[None]).int()
    return found
