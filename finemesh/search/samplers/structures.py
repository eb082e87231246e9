"""The structures of a define-by-run space, learned from its trials.

A structure is a set of hyperparameters that were asked for together: what a choice of method, or of a number of
layers, leaves active. Within a structure every point has the same variables, which is what a mesh needs. Which choices
lead to which structure is learned too: where two structures share a categorical whose values never met in both, it
is the switch between them, and each keeps to its own choices. A name may have another range in each structure.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from finemesh.search.samplers.encoding import Box, Dimension

Key = frozenset[str]
FEW = 16  # an integer with at most so many values can be a switch


class Structures:
    """Grows with every told trial; `distributions` are those seen last, in whatever structure."""

    def __init__(self) -> None:
        self.keys: list[Key] = []  # in order of discovery
        self.distributions: dict[str, BaseDistribution] = {}
        self._own: dict[Key, dict[str, BaseDistribution]] = {}  # those seen last in the structure
        self._seen: dict[Key, dict[str, set[int]]] = {}  # a choice by its index: it may be a list
        self._boxes: dict[Key, Box] = {}

    def add(self, values: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> Key:
        """What a trial asked for, whether it succeeded or not."""
        key = frozenset(values)
        own = self._own.setdefault(key, {})
        changed = {name: distributions[name] for name in key if own.get(name) != distributions[name]}
        own.update(changed)
        self.distributions.update(changed)
        if key not in self._seen:
            self.keys.append(key)
            self._seen[key] = {name: set() for name in key if self._can_switch(name)}
            self._boxes.clear()
        new = {name: index for name, seen in self._seen[key].items()
               if (index := _index(own[name], values[name])) not in seen}
        for name, index in new.items():
            self._seen[key][name].add(index)
        if changed or new:
            self._boxes.clear()
        return key

    def _can_switch(self, name: str) -> bool:
        match self.distributions[name]:
            case CategoricalDistribution():
                return True
            case IntDistribution(low=low, high=high, step=step):
                return bool((high - low) // step < FEW)
        return False

    def box(self, key: Key) -> Box:
        """The variables of a structure, without the values that lead elsewhere."""
        if key not in self._boxes:
            self._boxes[key] = self._learned_box(key)
        return self._boxes[key]

    def _learned_box(self, key: Key) -> Box:
        foreign: dict[str, set[int]] = {}
        for other in self.keys:
            switch = None if other == key else self._switch(key, other)
            if switch is not None:
                foreign.setdefault(switch, set()).update(self._seen[other][switch])
        dimensions, fixed = [], []
        for name in sorted(key):
            own = self._seen[key].get(name, set())
            dimension = _narrowed(name, self._own[key][name], foreign.get(name, set()), own)
            if dimension.size == 1 or dimension.distribution.single():
                fixed.append((name, dimension.value(0.0)))
            else:
                dimensions.append(dimension)
        return Box(tuple(dimensions), tuple(fixed))

    def _switch(self, key: Key, other: Key) -> str | None:
        """The hyperparameter whose values tell two structures apart: categoricals before integers."""
        ours, theirs = self._seen[key], self._seen[other]
        apart = [name for name in ours.keys() & theirs.keys() if ours[name].isdisjoint(theirs[name])]
        return min(apart, key=lambda name: (self._is_integer(name), -self._power(name), name), default=None)

    def _is_integer(self, name: str) -> bool:
        return not isinstance(self.distributions[name], CategoricalDistribution)

    def _power(self, name: str) -> int:
        """How many pairs of structures it tells apart: a real switch more than a coincidence of few trials."""
        groups = [self._seen[key][name] for key in self.keys if name in self._seen[key]]
        return sum(a.isdisjoint(b) for i, a in enumerate(groups) for b in groups[:i])

    @property
    def switchable(self) -> bool:
        """Whether there may be structures, or ways between them, that no trial has shown yet."""
        return any(self._can_switch(name) for name in self.distributions)

    def untried(self, also: Iterable[Mapping[str, Any]], switches_only: bool) -> tuple[str, Any] | None:
        """A choice, of a categorical that every structure has, that no trial has taken, nor any of `also`."""
        for name in sorted(frozenset.intersection(*self.keys)) if self.keys else []:
            distribution = self.distributions[name]
            if not isinstance(distribution, CategoricalDistribution) or (switches_only and not self._power(name)):
                continue
            taken = {index for seen in self._seen.values() for index in seen.get(name, ())}
            taken |= {_index(distribution, values[name]) for values in also if name in values}
            for choice in distribution.choices:
                if _index(distribution, choice) not in taken:
                    return name, choice
        return None


def _index(distribution: BaseDistribution, value: Any) -> int:
    """Of the first choice that equals this one; an integer's own value."""
    return int(distribution.to_internal_repr(value))


def _narrowed(name: str, distribution: BaseDistribution, foreign: set[int], own: set[int]) -> Dimension:
    if isinstance(distribution, CategoricalDistribution):
        choices = [place for place, choice in enumerate(distribution.choices)
                   if (index := _index(distribution, choice)) in own or index not in foreign]
        return Dimension(name, distribution, tuple(choices))
    if isinstance(distribution, IntDistribution):
        foreign, own = ({value for value in values if distribution._contains(value)} for values in (foreign, own))
        if foreign and own:
            low = max([value + distribution.step for value in foreign if value < min(own)], default=distribution.low)
            high = min([value - distribution.step for value in foreign if value > max(own)], default=distribution.high)
            distribution = IntDistribution(low, high, log=distribution.log, step=distribution.step)
    return Dimension(name, distribution)
