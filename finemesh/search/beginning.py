"""The points that a search begins with: each method's reference settings, then the same at a rate that suits a shorter run.

A paper's rate is for some thousand updates. AdamW moves a weight by up to the rate in each of them, so that a run of fewer
gets nowhere with it: rates rise with the root of how much shorter the run is (docs/decisions/016, docs/evidence.md).
"""

from collections.abc import Mapping
from math import sqrt
from typing import Any

from finemesh.search.space import Point, Space

RATE = "learning_rate"
USUAL_STEPS = 2000  # for which the reference rates are taken as they are


def beginning(references: Mapping[str, Mapping[str, Any]], space: Space, steps: int) -> list[tuple[str, Point]]:
    """In the order to be evaluated, inside `space`, for trials of `steps` updates; no point twice."""
    found: dict[str, tuple[str, Point]] = {}
    for factor in (1.0, max(1.0, sqrt(USUAL_STEPS / steps))):
        for method, reference in references.items():
            faster = {RATE: reference[RATE] * factor} if RATE in reference else {}
            point = space.nearest(method, {**reference, **faster})
            found.setdefault(space.key(method, point), (method, point))
    return list(found.values())
