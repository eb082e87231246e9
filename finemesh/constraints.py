"""Whether a trial keeps the constraints: upper bounds on its numbers, lower bounds on its scores."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finemesh.trial import HIGHER_IS_BETTER, Outcome

FINAL = HIGHER_IS_BETTER | {"validation_loss"}  # get better with every step: only a whole trial can break their bounds


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


def judged(outcome: Outcome, bounds: Mapping[str, float]) -> Outcome:
    """With its excesses. What breaks a bound is infeasible; a pruned trial that only would if it went on goes no further."""
    outcome = replace(outcome, constraints=violations(outcome, bounds) or outcome.constraints)
    above = {name: excess for name, excess in outcome.constraints.items() if excess > 0}
    if outcome.state not in ("complete", "pruned") or not above:
        return outcome
    if outcome.state == "pruned" and list(above) == ["seconds"] and outcome.seconds <= bounds["seconds"]:
        return replace(outcome, error=outcome.error or f"after all steps {broken(above, bounds, 'would be')}")
    return replace(outcome, state="infeasible", error=broken(above, bounds))


def violations(outcome: Outcome, bounds: Mapping[str, float]) -> dict[str, float]:
    """By how much each bound is broken whose value is known: at most 0 where it is kept.

    Of a pruned trial, what a whole one would show: its time at full length, and of what gets better with every step at most 0.
    A score that it has not reached may yet be, so it is neither kept nor broken; nor is one that was not measured.
    """
    known = {name: value for name, value in outcome.to_json().items() if value} | dict(outcome.metrics)
    if outcome.whole_seconds:
        known["seconds"] = outcome.whole_seconds
    excesses = {name: bound - known[name] if name in HIGHER_IS_BETTER else known[name] - bound
                for name, bound in bounds.items() if name in known}
    if outcome.state == "pruned":
        excesses |= {name: min(excesses.get(name, 0.0), 0.0) for name in bounds if name in FINAL}
    return excesses


def broken(excesses: Mapping[str, float], bounds: Mapping[str, float], verb: str = "is") -> str:
    """The worst broken constraint in words."""
    name, excess = max(excesses.items(), key=lambda item: item[1] / max(abs(bounds[item[0]]), 1e-12))
    bound, above = bounds[name], name not in HIGHER_IS_BETTER
    number = bound + excess if above else bound - excess
    return f"{name} {verb} {_shown(number)}, {'more' if above else 'less'} than {_shown(bound)}"


def _shown(number: float) -> str:
    return f"{number:.0f}" if float(number).is_integer() else f"{number:g}"
