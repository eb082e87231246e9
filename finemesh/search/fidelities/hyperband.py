"""Hyperband: brackets that begin at every rung in turn, in case the first steps mislead. Li et al., arXiv 1603.06560."""

import math

from finemesh.search.fidelities.brackets import LAST, Brackets, Rung, rungs


def hyperband(steps: int, min_steps: int | None, reduction: int) -> Brackets:
    """The paper's algorithm 1, but for LAST: bracket s begins with ceil((s_max + 1) / (s + 1) * reduction ** s) points."""
    lengths = rungs(steps, min_steps, reduction)
    shapes = []
    for s in range(len(lengths) - 1, -1, -1):
        points = math.ceil(len(lengths) / (s + 1) * reduction ** s)
        shapes.append(tuple(Rung(max(LAST, points // reduction ** place), length)
                            for place, length in enumerate(lengths[-s - 1:])))
    return Brackets(shapes, reduction)
