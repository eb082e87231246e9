"""What a user wrote of one hyperparameter: a range, choices or a value, checked against what the method knows.

A user's range may go beyond the method's own: that is the user's right. What no method can mean is refused (a negative
rank, zero on a log scale, an unknown choice).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from finemesh.errors import InputError, nearest
from finemesh.hyperparameter import Hyperparameter, Value

Numeric = FloatDistribution | IntDistribution


def narrowed(hyperparameter: Hyperparameter, written: Sequence[Any] | Mapping[str, Any], place: str) -> Hyperparameter:
    """`written` is [low, high], {"choices": [...]}, or a list of choices where the method has choices."""
    distribution = hyperparameter.distribution
    if isinstance(written, Mapping):
        if set(written) != {"choices"} or not isinstance(written["choices"], list | tuple) or not written["choices"]:
            raise InputError(f"{place}: {_shown(written)} must be a value, a range [low, high] or {{choices: [1, 2]}}")
        found: BaseDistribution = _choices(hyperparameter, written["choices"], place)
    elif isinstance(distribution, CategoricalDistribution):
        found = _choices(hyperparameter, written, place)
    else:
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        found = _range(hyperparameter, distribution, written, place)
    return replace(hyperparameter, distribution=found, default=inside(found, hyperparameter.default))


def checked(hyperparameter: Hyperparameter, value: Any, place: str) -> Value:
    """The value with the distribution's type; InputError where it cannot be one."""
    distribution = hyperparameter.distribution
    if hyperparameter.open and isinstance(value, str):
        return value
    if isinstance(distribution, CategoricalDistribution):
        return _choice(distribution, value, place)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    number = _number(value)
    if number is None:
        raise InputError(f"{place}: {_shown(value)} must be a number")
    if isinstance(distribution, IntDistribution) and number != int(number):
        raise InputError(f"{place}: {_shown(value)} must be a whole number")
    positive = distribution.log or (isinstance(distribution, IntDistribution) and distribution.low > 0)
    if (number <= 0 and positive) or number < 0 <= distribution.low:
        raise InputError(f"{place}: {_shown(value)} must be {'above' if positive else 'at least'} 0; the method's own "
                         f"range is {distribution.low:g} to {distribution.high:g}")
    return int(number) if isinstance(distribution, IntDistribution) else float(number)


def typed(distribution: BaseDistribution, value: Any) -> Any:
    """A number of a numeric hyperparameter as its own type (1 and 1.0 are one point); anything else as it is."""
    if isinstance(distribution, CategoricalDistribution) or isinstance(value, bool | str):
        return value
    return int(value) if isinstance(distribution, IntDistribution) else float(value)


def inside(distribution: BaseDistribution, value: Any) -> Any:
    """The value, or the nearest one that the distribution has."""
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        if value in choices:
            return value
        numbers = [choice for choice in choices if _number(choice) is not None]
        is_number = _number(value) is not None
        return min(numbers, key=lambda choice: abs(choice - value)) if numbers and is_number else choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    clipped = min(max(value, distribution.low), distribution.high)
    if distribution.step is not None and not distribution.log:
        clipped = distribution.low + round((clipped - distribution.low) / distribution.step) * distribution.step
    return typed(distribution, min(clipped, distribution.high))


def _range(hyperparameter: Hyperparameter, distribution: Numeric, written: Sequence[Any], place: str) -> BaseDistribution:
    if len(written) != 2:
        raise InputError(f"{place}: {_shown(written)} must be a range [low, high]; "
                         f"single values are written {{choices: {_shown(written)}}}")
    if distribution.log and any(_number(end) == 0 for end in written):
        raise InputError(f"{place}: the range {_shown(written)} must start above 0: it is searched on a log scale")
    low, high = (checked(hyperparameter, end, place) for end in written)
    if low > high:  # type: ignore[operator]
        raise InputError(f"{place}: the range {_shown(written)} is upside down: write "
                         f"{_shown([written[1], written[0]])}")
    step = None if distribution.log else distribution.step
    if step is not None:
        high = low + math.floor((high - low) / step + 1e-9) * step  # type: ignore[operator]
    if isinstance(distribution, IntDistribution):
        return IntDistribution(int(low), int(high), log=distribution.log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=distribution.log, step=step)


def _choices(hyperparameter: Hyperparameter, written: Sequence[Any], place: str) -> CategoricalDistribution:
    return CategoricalDistribution(tuple(dict.fromkeys(checked(hyperparameter, value, place) for value in written)))


def _choice(distribution: CategoricalDistribution, value: Any, place: str) -> Value:
    for choice in distribution.choices:
        same_kind = isinstance(choice, bool) == isinstance(value, bool)
        same_text = isinstance(value, str) and not isinstance(choice, str) and _text(choice) == value.lower()
        if (choice == value and same_kind) or same_text:
            return choice  # type: ignore[return-value]
    numbers = all(_number(choice) is not None and not isinstance(choice, str) for choice in distribution.choices)
    number = _number(value)
    if numbers and number is not None and number >= 0:
        return int(number) if number == int(number) and isinstance(distribution.choices[0], int) else number
    raise InputError(f"{place}: there is no choice {_shown(value)}."
                     + nearest(_text(value), [_text(choice) for choice in distribution.choices]))


def _number(value: Any) -> float | None:
    """Also of text such as 1e-5, which is what PyYAML and a command line make of it."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    """As the user writes it in YAML."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_shown(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_shown(inner) for inner in value) + "]"
    return _text(value) if isinstance(value, bool | int | float) else repr(value)
