"""What a search minimises or maximises: one to four numbers of an outcome, and the front of several.

A trial is on the front where no other one is at least as good in all objectives and better in one.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Literal

from finemesh.trial import HIGHER_IS_BETTER, Outcome

LOSS = "validation_loss"
OBJECTIVES = (LOSS, "seconds", "minutes", "peak_memory_mb", "trainable_parameters", "adapter_mb", *sorted(HIGHER_IS_BETTER))
MOST = 4  # that the optimizers search


def value(outcome: Outcome, name: str) -> float | None:
    """None where it was not measured."""
    found = outcome.seconds / 60 if name == "minutes" else outcome.metrics.get(name) if name in HIGHER_IS_BETTER else getattr(
        outcome, name)
    return None if found is None or not isfinite(found) else float(found)


def values(outcome: Outcome, names: Sequence[str]) -> list[float] | None:
    """None where one of them was not measured."""
    found = [measured for name in names if (measured := value(outcome, name)) is not None]
    return found if len(found) == len(names) else None


def directions(names: Sequence[str]) -> list[Literal["maximize", "minimize"]]:
    """As Optuna names them."""
    return ["maximize" if name in HIGHER_IS_BETTER else "minimize" for name in names]


def front(outcomes: Sequence[Outcome], names: Sequence[str]) -> list[Outcome]:
    """The complete, feasible ones, without copies, that no other one of them dominates; the lowest validation loss first."""
    usable = [outcome for outcome in outcomes if outcome.state == "complete" and outcome.duplicate_of is None
              and all(excess <= 0 for excess in outcome.constraints.values())]
    losses = {outcome.number: [-x if name in HIGHER_IS_BETTER else x for name, x in zip(names, found, strict=True)]
              for outcome in usable if (found := values(outcome, names)) is not None}
    best: dict[int, list[float]] = {}
    for number in sorted(losses, key=losses.__getitem__):  # what dominates a trial comes before it
        if not any(_dominates(other, losses[number]) for other in best.values()):
            best[number] = losses[number]
    return sorted((o for o in usable if o.number in best), key=lambda o: (o.validation_loss or 0.0, o.number))


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(x <= y for x, y in zip(one, other, strict=True))
