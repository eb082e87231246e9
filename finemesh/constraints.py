"""Whether a trial keeps the constraints: upper bounds on its numbers, lower bounds on its scores."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finemesh.trial import HIGHER_IS_BETTER, Outcome

FINAL = HIGHER_IS_BETTER | {"validation_loss"}  # get better with every step: only a whole trial is judged by them


class Infeasible(Exception):
    """A constraint is broken for certain; `numbers` are the outcome's so far."""

    def __init__(self, message: str, numbers: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.numbers = numbers


def check(outcome: Outcome, bounds: Mapping[str, float], numbers: Mapping[str, Any]) -> None:
    """Raises Infeasible where what is known of a trial under way breaks a bound."""
    excesses = violations(replace(outcome, **numbers), bounds)
    if any(excess > 0 for excess in excesses.values()):
        raise Infeasible(broken(excesses, bounds), numbers)


def violations(outcome: Outcome, bounds: Mapping[str, float]) -> dict[str, float]:
    """By how much each bound is broken whose value is known: at most 0 where it is kept."""
    known = {name: value for name, value in outcome.to_json().items() if value} | dict(outcome.metrics)
    judged = [name for name in bounds if name in known and (name not in FINAL or outcome.state != "pruned")]
    return {name: bounds[name] - known[name] if name in HIGHER_IS_BETTER else known[name] - bounds[name] for name in judged}


def broken(excesses: Mapping[str, float], bounds: Mapping[str, float]) -> str:
    """The worst broken constraint in words."""
    name, excess = max(excesses.items(), key=lambda item: item[1] / max(abs(bounds[item[0]]), 1e-12))
    bound, above = bounds[name], name not in HIGHER_IS_BETTER
    number = bound + excess if above else bound - excess
    return f"{name} is {_shown(number)}, {'more' if above else 'less'} than {_shown(bound)}"


def _shown(number: float) -> str:
    return f"{number:.0f}" if float(number).is_integer() else f"{number:g}"
