"""What a study says of its trials: always to be minimised, failures told from infeasible ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

Kind = Literal["complete", "pruned", "infeasible", "failed"]
HUGE = 1e100  # squares of it are still numbers


@dataclass(frozen=True)
class Record:
    """One told trial. `loss` is inf where there is none; of a pruned trial it is the last value that it reported, which is
    taken for what it would have ended with, until a later trial with its values says how it did end.

    `kind` is "infeasible" where a broken constraint left the trial without a loss (out of memory); one that is complete
    may be infeasible too.
    """

    number: int
    values: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    kind: Kind
    loss: float
    violations: Mapping[str, float]  # name -> at most 0 is feasible
    others: tuple[float, ...] = ()  # the losses of the objectives after the first

    @property
    def losses(self) -> tuple[float, ...]:
        return (self.loss, *self.others)

    @property
    def valued(self) -> bool:
        return self.kind in ("complete", "pruned")

    @property
    def feasible(self) -> bool:
        return all(value <= 0 for value in self.violations.values())

    @cached_property
    def violation(self) -> float:
        """NOMAD's h: the sum of the squares of what is above 0."""
        return sum(max(value, 0.0) ** 2 for value in self.violations.values())

    @cached_property
    def merit(self) -> tuple[int, float, float]:
        """Smaller is better: feasible ones by loss, then infeasible ones by violation, then failed ones."""
        if self.kind == "failed":
            return (2, self.loss, 0.0)
        return (0, self.loss, 0.0) if self.valued and self.feasible else (1, self.violation, self.loss)


def read(trial: FrozenTrial, sign: float, *more: float) -> Record:
    """A finished trial's record; `sign` is -1 where the study maximises, as is one of `more` for each further objective."""
    violations = {name: min(max(value, -HUGE), HUGE) for name, value in sorted(trial.constraints.items())}
    kind: Kind = "failed"
    loss, others = math.inf, tuple(math.inf for _ in more)
    if trial.state == TrialState.COMPLETE and trial.values is not None:
        kind, loss = "complete", sign * trial.values[0]
        others = tuple(turn * value for turn, value in zip(more, trial.values[1:], strict=True))
    elif trial.state == TrialState.PRUNED and trial.intermediate_values:
        kind, loss = "pruned", sign * trial.intermediate_values[max(trial.intermediate_values)]
    if not all(abs(value) < HUGE for value in (loss, *others)):  # inf and NaN too
        broken = trial.state != TrialState.FAIL and any(value > 0 for value in violations.values())
        kind, loss = "infeasible" if broken else "failed", math.inf
    return Record(trial.number, trial.params, trial.distributions, kind, loss, violations, others)
