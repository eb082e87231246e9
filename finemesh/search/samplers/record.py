"""What a study says of its trials: always to be minimised, failures told from infeasible ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

HUGE = 1e100  # squares of it are still numbers


@dataclass(frozen=True)
class Record:
    """One told trial. `loss` is inf where it failed; of a pruned trial it is the last value that it reported."""

    number: int
    values: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    kind: Literal["complete", "pruned", "failed"]
    loss: float
    violations: Mapping[str, float]  # name -> at most 0 is feasible

    @property
    def feasible(self) -> bool:
        return all(value <= 0 for value in self.violations.values())

    @property
    def violation(self) -> float:
        """NOMAD's h: the sum of the squares of what is above 0."""
        return sum(max(value, 0.0) ** 2 for value in self.violations.values())

    @property
    def merit(self) -> tuple[int, float, float]:
        """Smaller is better: complete feasible ones by loss, then infeasible ones by violation, then the rest."""
        if self.kind != "complete":
            return (2 if self.kind == "pruned" else 3, self.loss, 0.0)
        return (0, self.loss, 0.0) if self.feasible else (1, self.violation, self.loss)


def read(trial: FrozenTrial, sign: float) -> Record:
    """A finished trial's record; `sign` is -1 where the study maximises."""
    violations = {name: min(max(value, -HUGE), HUGE) for name, value in sorted(trial.constraints.items())}
    kind: Literal["complete", "pruned", "failed"] = "failed"
    loss = math.inf
    if trial.state == TrialState.COMPLETE and trial.values is not None:
        kind, loss = "complete", sign * trial.values[0]
    elif trial.state == TrialState.PRUNED and trial.intermediate_values:
        kind, loss = "pruned", sign * trial.intermediate_values[max(trial.intermediate_values)]
    if not abs(loss) < HUGE:  # inf and NaN too
        kind, loss = "failed", math.inf
    return Record(trial.number, trial.params, trial.distributions, kind, loss, violations)
