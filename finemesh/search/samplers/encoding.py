"""Coordinates: how the values of a space are laid out for NOMAD and for the surrogate.

A continuous dimension runs over [0, 1] (in the logarithm where the distribution says so; log integers too, rounded
when they are read), any other over 0 .. size - 1. A coordinate vector belongs to a Box: the dimensions of one
structure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Coordinates = tuple[float, ...]
Vector = NDArray[np.float64]
DIGITS = 5  # kept of a continuous coordinate: tidy values, and nothing hangs on the last bit of a sum


@dataclass(frozen=True)
class Dimension:
    """One variable; `choices` are the indices of a categorical's choices that belong to this structure."""

    name: str
    distribution: BaseDistribution
    choices: tuple[int, ...] = ()

    @staticmethod
    def whole(name: str, distribution: BaseDistribution) -> "Dimension":
        """With all of its choices."""
        count = len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else 0
        return Dimension(name, distribution, tuple(range(count)))

    @property
    def unordered(self) -> bool:
        return isinstance(self.distribution, CategoricalDistribution)

    @cached_property
    def size(self) -> int | None:
        """How many values it has; None for a continuous coordinate."""
        match self.distribution:
            case CategoricalDistribution():
                return len(self.choices)
            case IntDistribution(log=False, low=low, high=high, step=step):
                return (high - low) // step + 1
            case FloatDistribution(step=float(step), low=low, high=high):
                return round((high - low) / step) + 1
        return None

    @property
    def count(self) -> float:
        """How many values it has, rounded logarithmic integers included; inf for real ones."""
        if self.size is not None:
            return self.size
        return self.distribution.high - self.distribution.low + 1 if isinstance(self.distribution, IntDistribution) \
            else math.inf

    def sampled(self, uniform: float) -> float:
        """The coordinate of a number drawn from [0, 1)."""
        return round(uniform, DIGITS) if self.size is None else float(min(int(uniform * self.size), self.size - 1))

    def snapped(self, coordinate: float) -> float:
        """The coordinate that its value is read back as."""
        if self.size is not None:
            return coordinate
        if isinstance(self.distribution, IntDistribution):
            read = self.coordinate(self.value(coordinate))
            assert read is not None
            return read
        return round(coordinate, DIGITS)

    def value(self, coordinate: float) -> Any:
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            return distribution.choices[self.choices[round(coordinate)]]
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        low, high = distribution.low, distribution.high
        if self.size is not None:
            assert distribution.step is not None
            stepped = low + round(coordinate) * distribution.step
            return int(stepped) if isinstance(distribution, IntDistribution) else min(float(stepped), high)
        if coordinate in (0.0, 1.0):
            value = (low, high)[int(coordinate)]
        elif not distribution.log:
            value = low + coordinate * (high - low)
        elif high / low < math.inf:
            value = low * (high / low) ** coordinate
        else:
            value = math.exp(math.log(low) + coordinate * _log_ratio(high, low))
        return round(value) if isinstance(distribution, IntDistribution) else float(value)

    def coordinate(self, value: Any) -> float | None:
        """None where the value lies outside (its range has changed, or the choice belongs to another structure)."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            try:
                index = int(distribution.to_internal_repr(value))
            except ValueError:
                return None
            return float(self.choices.index(index)) if index in self.choices else None
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        low, high = distribution.low, distribution.high
        if not low <= value <= high:
            return None
        if self.size is not None:
            assert distribution.step is not None
            return float(round((value - low) / distribution.step))
        share = _log_ratio(value, low) / _log_ratio(high, low) if distribution.log else (value - low) / (high - low)
        return round(min(max(share, 0.0), 1.0), DIGITS)


@dataclass(frozen=True)
class Box:
    """The dimensions of one structure that can vary, and the values that are fixed in it."""

    dimensions: tuple[Dimension, ...]
    fixed: tuple[tuple[str, Any], ...] = ()

    def values(self, point: Sequence[float]) -> dict[str, Any]:
        """Of every hyperparameter of the structure."""
        return dict(self.fixed) | {d.name: d.value(z) for d, z in zip(self.dimensions, point, strict=True)}

    def coordinates(self, values: Mapping[str, Any]) -> Coordinates | None:
        if any(not same(values.get(name), value) for name, value in self.fixed):
            return None
        point = [d.coordinate(values[d.name]) if d.name in values else None for d in self.dimensions]
        return None if None in point else tuple(z for z in point if z is not None)

    def completed(self, values: Mapping[str, Any]) -> Coordinates:
        """The middle where a value is missing or outside: where a trial stands that led into another structure."""
        point = [d.coordinate(values[d.name]) if d.name in values else None for d in self.dimensions]
        return self.snapped([d.sampled(0.5) if z is None else z for d, z in zip(self.dimensions, point, strict=True)])

    def snapped(self, point: Sequence[float]) -> Coordinates:
        """The same point as it will be read back from its values: equal points get equal coordinates."""
        return tuple(d.snapped(z) for d, z in zip(self.dimensions, point, strict=True))

    def sampled(self, uniforms: Sequence[float] | Vector) -> Coordinates:
        return self.snapped([d.sampled(u) for d, u in zip(self.dimensions, uniforms, strict=True)])

    @cached_property
    def feature_blocks(self) -> tuple[int, ...]:
        """How many features each dimension has: a categorical one a choice, any other 1."""
        return tuple(d.size or 1 if d.unordered else 1 for d in self.dimensions)

    def features(self, points: Sequence[Sequence[float]]) -> Vector:  # (point, feature)
        """Each dimension in [0, 1]; two choices lie 1 apart."""
        raw = np.asarray(points, dtype=float).reshape(len(points), len(self.dimensions))
        columns = []
        for index, dimension in enumerate(self.dimensions):
            column = raw[:, index]
            if dimension.unordered:
                columns += [(column == choice) * math.sqrt(0.5) for choice in range(dimension.size or 1)]
            else:
                columns.append(column if dimension.size is None else column / max(1, dimension.size - 1))
        return np.stack(columns, axis=1).astype(float) if columns else np.zeros((len(points), 0))


def _log_ratio(value: float, low: float) -> float:
    """Also where the ratio is too large for a number."""
    return math.log(value / low) if value / low < math.inf else math.log(value) - math.log(low)


def same(value: Any, other: Any) -> bool:
    """NaN, which may be a choice, is the same as itself."""
    return bool(value == other) or (value != value and other != other)


def recurrence(size: int) -> Vector:
    """The step of an additive recurrence whose points are even in every dimension, whatever their number."""
    ratio = 2.0
    for _ in range(40):
        ratio = (1 + ratio) ** (1 / (size + 1))
    return ratio ** -np.arange(1.0, size + 1)
