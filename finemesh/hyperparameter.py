"""One dimension of a tuning method's space: a distribution, a default and the condition under which it is active.

Both halves read it: a method declares its hyperparameters, the search samples them. It knows nothing of either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Value = float | int | str | bool


@dataclass(frozen=True)
class Hyperparameter:
    """`when` = (name, values): active only while the earlier hyperparameter `name` of the same method has one of `values`."""

    distribution: BaseDistribution
    default: Value
    when: tuple[str, tuple[Value, ...]] | None = None
    open: bool = False  # the user may write texts that are none of the choices

    def active(self, point: Mapping[str, Any]) -> bool:
        return self.when is None or point.get(self.when[0]) in self.when[1]


Hyperparameters = Mapping[str, Hyperparameter]


def real(low: float, high: float, default: float, *, log: bool = False, step: float | None = None,
         when: tuple[str, tuple[Value, ...]] | None = None) -> Hyperparameter:
    return Hyperparameter(FloatDistribution(low, high, log=log, step=step), default, when)


def integer(low: int, high: int, default: int, *, log: bool = False, step: int = 1,
            when: tuple[str, tuple[Value, ...]] | None = None) -> Hyperparameter:
    return Hyperparameter(IntDistribution(low, high, log=log, step=step), default, when)


def choice(choices: Sequence[Value], default: Value, *, open: bool = False,
           when: tuple[str, tuple[Value, ...]] | None = None) -> Hyperparameter:
    return Hyperparameter(CategoricalDistribution(tuple(choices)), default, when, open)
