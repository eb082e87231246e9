"""The methods' hyperparameters as one conditional space: first the method, then what is active of its own.

In the store a name carries its method (`lora.rank`), because ranges differ between methods. Everywhere else a point is
the flat dict {"rank": 8, ...}; the prefix is added and stripped here and nowhere else.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import BaseTrial

from finemesh.errors import InputError, nearest
from finemesh.hyperparameter import Hyperparameter, Hyperparameters, Value
from finemesh.search.narrowing import checked, inside, narrowed, typed

Point = dict[str, Any]
MANY = 8  # values of a condition: then they are a range, such as every number from 1


@dataclass(frozen=True)
class Space:
    """`methods` in the order of the config; `fixed`, by method: values that are in every point but not sampled."""

    methods: Mapping[str, Hyperparameters]
    fixed: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)

    def suggest(self, trial: BaseTrial) -> tuple[str, Point]:
        method = str(trial.suggest_categorical("method", list(self.methods)))
        point: Point = {}
        for name, hyperparameter in self.methods[method].items():
            if hyperparameter.active(point):
                fixed = self.fixed.get(method, {})
                point[name] = fixed[name] if name in fixed else _suggest(trial, f"{method}.{name}",
                                                                         hyperparameter.distribution)
        return method, point

    def to_json(self) -> dict[str, dict[str, Any]]:
        """By method, the distributions of what is sampled, as Optuna writes them."""
        return {method: {name: json.loads(distribution_to_json(hyperparameter.distribution))
                         for name, hyperparameter in known.items() if name not in self.fixed.get(method, {})}
                for method, known in self.methods.items()}

    def stored(self, method: str, point: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a trial in the store that `suggest` reads as this point."""
        fixed = self.fixed.get(method, {})
        return {"method": method} | {f"{method}.{name}": value for name, value in point.items() if name not in fixed}

    def narrowed(self, user: Mapping[str, Mapping[str, Any] | None]) -> "Space":
        """The methods that the user names, with what is written of their hyperparameters.

        [low, high] is a range, which may go beyond the method's own; {"choices": [...]} are choices, as is a list where
        the method has choices; any other value fixes the hyperparameter.
        """
        methods: dict[str, Hyperparameters] = {}
        fixed: dict[str, dict[str, Value]] = {}
        for method, written in user.items():
            known = self._hyperparameters(method)
            hyperparameters = dict(known)
            fixed[method] = dict(self.fixed.get(method, {}))
            for name, value in (written or {}).items():
                _check_known(method, name, known)
                place = f"methods.{method}.{name}"
                if isinstance(value, list | tuple | dict):
                    hyperparameters[name] = narrowed(known[name], value, place)
                    fixed[method].pop(name, None)
                else:
                    fixed[method][name] = checked(known[name], value, place)
                    hyperparameters[name] = replace(known[name], default=fixed[method][name])
            methods[method] = hyperparameters
        return Space(methods, fixed)

    def point(self, method: str, settings: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> Point:
        """A whole point: the user's `settings`, then what is fixed, then `base` (a reference), then the defaults."""
        hyperparameters = self._hyperparameters(method)
        for name in settings:
            _check_known(method, name, hyperparameters)
        given = {**(base or {}), **self.fixed.get(method, {})}
        point: Point = {}
        for name, hyperparameter in hyperparameters.items():
            if not hyperparameter.active(point):
                _check_inactive(method, name, hyperparameter, settings)
            elif name in settings:
                point[name] = checked(hyperparameter, settings[name], f"{method}.{name}")
            else:
                point[name] = typed(hyperparameter.distribution, given.get(name, hyperparameter.default))
        return point

    def smallest(self, method: str) -> Point:
        """Every number at its low end, every choice at its default."""
        found = Point()
        for name, hyperparameter in self._hyperparameters(method).items():
            if hyperparameter.active(found):
                distribution = hyperparameter.distribution
                choices = isinstance(distribution, CategoricalDistribution)
                found[name] = hyperparameter.default if choices else distribution.low  # type: ignore[attr-defined]
        return found

    def extremes(self, method: str, name: str) -> list[Point]:
        """Points with the defaults but for `name`, which takes its fixed value, its choices or the ends of its range."""
        hyperparameters = self._hyperparameters(method)
        settings: dict[str, Any] = {}
        hyperparameter = hyperparameters[name]
        while hyperparameter.when is not None:
            other, values = hyperparameter.when
            settings[other] = hyperparameters[other].default if hyperparameters[other].default in values else values[0]
            hyperparameter = hyperparameters[other]
        return [self.point(method, {**settings, name: value}) for value in self._ends(method, name)]

    def _ends(self, method: str, name: str) -> Sequence[Value]:
        if name in self.fixed.get(method, {}):
            return [self.fixed[method][name]]
        distribution = self._hyperparameters(method)[name].distribution
        if isinstance(distribution, CategoricalDistribution):
            return list(distribution.choices)  # type: ignore[arg-type]
        return [distribution.low, distribution.high]  # type: ignore[attr-defined]

    def nearest(self, method: str, point: Mapping[str, Any]) -> Point:
        """The point of this space that is nearest to one which a narrowed range or a fixed value leaves out."""
        fixed, found = self.fixed.get(method, {}), Point()
        for name, hyperparameter in self._hyperparameters(method).items():
            if hyperparameter.active(found):
                value = point.get(name, hyperparameter.default)
                found[name] = fixed[name] if name in fixed else inside(hyperparameter.distribution, value)
        return found

    def key(self, method: str, point: Mapping[str, Any]) -> str:
        """The same text for the same active point, whatever the order of its names and the types of its numbers."""
        known = self._hyperparameters(method)
        values = {name: typed(known[name].distribution, value) for name, value in point.items() if name in known}
        return json.dumps([method, values], sort_keys=True)

    def _hyperparameters(self, method: str) -> Hyperparameters:
        if method not in self.methods:
            raise InputError(f"there is no method {method}.{nearest(method, self.methods)}")
        return self.methods[method]


def _suggest(trial: BaseTrial, name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case FloatDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_float(name, low, high, step=step, log=log)
        case IntDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_int(name, low, high, step=step, log=log)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
    raise TypeError(f"{name}: {distribution}")


def _check_known(method: str, name: str, known: Hyperparameters) -> None:
    if name not in known:
        raise InputError(f"{method} has no hyperparameter {name}.{nearest(name, known)}")


def _check_inactive(method: str, name: str, hyperparameter: Hyperparameter, settings: Mapping[str, Any]) -> None:
    if name in settings and hyperparameter.when is not None:
        other, values = hyperparameter.when
        wanted = f"{values[0]} or more" if len(values) > MANY else " or ".join(str(value) for value in values)
        raise InputError(f"{method}.{name} has no effect here: it is used only where {other} is {wanted}. "
                         f"Set {other} too, or leave {name} out.")
