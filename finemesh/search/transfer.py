"""Warm start: what earlier studies found best is tried here first, ranked by what transfers.

The losses of other data or of another model mean little here, their order may mean much. So orders are compared: of two points
that were measured both in an earlier study and here, is the better one there the better one here (Kendall's tau)? What is next
is a function of the trials that have been told, so that a search goes on as the uninterrupted one.
"""

import json
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from finemesh.disk import full_disk
from finemesh.errors import InputError, undamaged
from finemesh.run import RunFolder
from finemesh.search.samplers.encoding import Dimension
from finemesh.search.space import Space
from finemesh.trial import Outcome, write_json

A_METHOD = 3  # points of each method, at most
FIRST = 3  # points in the earlier order, of different methods where there are some, before this study's own results count
CARRIED = 6  # points in all: then the optimizer knows as much as they can tell it
DIFFERENT = 0.1  # of a range, in one hyperparameter at least: nearer points are not both tried


@dataclass(frozen=True)
class Known:
    """A complete trial of an earlier study, its point moved into this space; `rank` is 1 for the study's best."""

    study: str
    number: int
    method: str
    hyperparameters: Mapping[str, Any]
    loss: float
    rank: int


@dataclass(frozen=True)
class Agreement:
    """How many pairs of points are in the same order in an earlier study and here, and how many in the other."""

    same: int
    other: int

    @property
    def pairs(self) -> int:
        return self.same + self.other

    @property
    def tau(self) -> float | None:
        return (self.same - self.other) / self.pairs if self.pairs else None


def known_points(folder: Path | str, space: Space, references: Mapping[str, Mapping[str, Any]]) -> list[Known]:
    """Of an earlier run: its leaders and the trials that have this study's reference settings, best first. InputError for a
    folder that has none."""
    run = RunFolder.existing(folder)
    done = [o for o in run.outcomes() if o.state == "complete" and o.duplicate_of is None and o.validation_loss is not None]
    if not done:
        raise InputError(f"{folder} has no complete trial yet: let its search run, or leave it out")
    done.sort(key=lambda outcome: outcome.validation_loss or 0.0)
    points: dict[str, Known] = {}  # by key, the best of those that come to lie on one point here
    for rank, outcome in enumerate(done, 1):
        if outcome.method in space.methods:
            point = space.nearest(outcome.method, outcome.hyperparameters)
            points.setdefault(space.key(outcome.method, point), Known(
                str(folder), outcome.number, outcome.method, point, outcome.validation_loss or 0.0, rank))
    if not points:
        tried = ", ".join(dict.fromkeys(outcome.method for outcome in done))
        raise InputError(f"{folder} shares no method with this search: it has trials of {tried}, this one is over "
                         f"{', '.join(space.methods)}")
    wanted = {space.key(method, point) for method, point in references.items()}
    wanted |= {space.key(known.method, known.hyperparameters) for known in leaders(list(points.values()), space)}
    return [known for key, known in points.items() if key in wanted]


def leaders(points: Sequence[Known], space: Space) -> list[Known]:
    """Of each method the best that differ, in the order of their ranks."""
    chosen: list[Known] = []
    for known in sorted(points, key=lambda known: known.rank):
        rivals = [other for other in chosen if other.method == known.method]
        if len(rivals) < A_METHOD and all(_differ(space, known, other) for other in rivals):
            chosen.append(known)
    return chosen


def write_known(run: RunFolder, points: Sequence[Known]) -> None:
    with full_disk(run.path):
        write_json(run.earlier, [asdict(known) for known in points])


def read_known(run: RunFolder) -> list[Known]:
    """As they were when this study began, whatever has become of the earlier ones."""
    with undamaged(run.earlier):
        return [Known(**fields) for fields in json.loads(run.earlier.read_text(encoding="utf-8"))]


class Transfer:
    """`first` holds the keys of the points that are tried in any case, `forecast` says what a pruned trial's loss would be."""

    def __init__(self, points: Sequence[Known], space: Space, first: Container[str],
                 forecast: Callable[[Outcome], float | None]) -> None:
        self._points, self._space, self._first, self._forecast = points, space, first, forecast
        self._here: dict[str, Outcome] = {}

    @cached_property
    def _keys(self) -> dict[str, list[Known]]:
        found: dict[str, list[Known]] = {}
        for known in self._points:
            found.setdefault(self._key(known), []).append(known)
        return found

    @cached_property
    def _leaders(self) -> dict[str, Known]:
        found = {self._key(known): known for known in leaders(self._points, self._space)}
        return {key: known for key, known in found.items() if key not in self._first}

    def next(self, asked: Container[str]) -> Known | None:
        """The point to try next, `asked` being the keys of all that were asked for; None where the optimizer is to go on."""
        carried = [known for key, known in self._leaders.items() if key in asked]
        left = [known for key, known in self._leaders.items() if key not in asked and not self._lost(known.method)]
        if not left or len(carried) >= CARRIED:
            return None
        if len(carried) < FIRST:
            tried = {known.method for known in carried}
            return min(left, key=lambda known: (known.method in tried, known.rank))
        return min(left, key=lambda known: (self._best(known.method), known.rank))

    def tell(self, outcome: Outcome) -> bool:
        """Whether the outcome is of a point that an earlier study knows."""
        key = self._space.key(outcome.method, outcome.hyperparameters) if self._points else ""
        if key in self._keys:
            self._here[key] = outcome
        return key in self._keys

    def over(self, asked: Container[str]) -> bool:
        """Nothing is left to try, and what was tried has been told."""
        due = [key for key in self._keys if key in asked or key in self._first]
        return all(key in self._here for key in due) and self.next(asked) is None

    def agreement(self, method: str | None = None) -> Agreement:
        """Over pairs of points of one study that were told here: those of one method, or of all."""
        pairs = [(a, b) for a, b in combinations(self._measured(method), 2) if a[0].study == b[0].study]
        signs = [_sign(a.loss - b.loss) * _sign(here - there) if here != there else 0 for (a, here), (b, there) in pairs]
        return Agreement(signs.count(1), signs.count(-1))

    def document(self) -> dict[str, Any]:
        """What transferred, in numbers and in words."""
        measured, agreement = self._measured(), self.agreement()
        methods = {method: self.agreement(method) for method in dict.fromkeys(known.method for known, _ in measured)}
        return {"studies": self._studies, "pairs": agreement.pairs, "same_order": agreement.same, "kendall": agreement.tau,
                "said": self.said(),
                "methods": {method: {"pairs": one.pairs, "same_order": one.same, "kendall": one.tau,
                                     "dropped": self._lost(method)} for method, one in methods.items()},
                "points": [{"study": known.study, "number": known.number, "trial": self._here[self._key(known)].number,
                            "method": known.method, "earlier_loss": known.loss, "loss": loss if math.isfinite(loss) else None}
                           for known, loss in measured]}

    def said(self) -> str:
        agreement, points = self.agreement(), len(self._here)
        text = f"{points} point{'' if points == 1 else 's'} of {', '.join(self._studies)} measured here"
        if agreement.tau is None:
            return f"{text}: too few to say whether the ranking there holds here."
        holds = "holds" if agreement.tau >= 0.5 else "holds in part" if agreement.tau > 0 else "does not hold"
        text += f": {agreement.same} of {agreement.pairs} pairs are in the same order as there (Kendall's tau " \
                f"{agreement.tau:.2f}), so the ranking there {holds} here."
        lost = [method for method in dict.fromkeys(known.method for known in self._points) if self._lost(method)]
        return text + (f" Within {' and '.join(lost)} it does not: no more points of it were taken over." if lost else "")

    @cached_property
    def _studies(self) -> list[str]:
        return list(dict.fromkeys(known.study for known in self._points))

    def _lost(self, method: str) -> bool:
        tau = self.agreement(method).tau
        return tau is not None and tau <= 0

    def _best(self, method: str) -> float:
        return min((loss for _, loss in self._measured(method)), default=math.inf)

    def _measured(self, method: str | None = None) -> list[tuple[Known, float]]:
        """What was told here, with its loss: inf of a trial that failed or broke a constraint."""
        return [(known, self._loss(self._here[key])) for key, found in self._keys.items() if key in self._here
                for known in found if method in (None, known.method)]

    def _loss(self, outcome: Outcome) -> float:
        loss = outcome.validation_loss if outcome.state == "complete" else self._forecast(outcome)
        return math.inf if loss is None else loss

    def _key(self, known: Known) -> str:
        return self._space.key(known.method, known.hyperparameters)


def _sign(difference: float) -> int:
    return (difference > 0) - (difference < 0)


def _differ(space: Space, one: Known, other: Known) -> bool:
    a, b, known = one.hyperparameters, other.hyperparameters, space.methods[one.method]
    return a.keys() != b.keys() or any(_apart(known[name].distribution, a[name], b[name]) > DIFFERENT for name in a)


def _apart(distribution: BaseDistribution, a: Any, b: Any) -> float:
    """The share of the range that lies between two values; 1 for two choices."""
    if a == b:
        return 0.0
    if isinstance(distribution, CategoricalDistribution):
        return 1.0
    axis = Dimension.whole("", distribution)
    places = [axis.coordinate(value) for value in (a, b)]
    ends = [place for place in places if place is not None]  # both: the points were moved into the space
    return (max(ends) - min(ends)) / (1 if axis.size is None else max(1, axis.size - 1))
