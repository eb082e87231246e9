"""Successive halving: every bracket begins at the lowest rung. Jamieson & Talwalkar, arXiv 1502.07943."""

from finemesh.search.fidelities.brackets import LAST, Brackets, Rung, rungs


def halving(steps: int, min_steps: int | None, reduction: int) -> Brackets:
    lengths = rungs(steps, min_steps, reduction)
    top = len(lengths) - 1
    shape = tuple(Rung(max(LAST, reduction ** (top - place)), length) for place, length in enumerate(lengths))
    return Brackets([shape], reduction)
