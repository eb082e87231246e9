"""Brackets of successive halving: many points for a few steps, the best of them for more, the best of these to the end.

A rung is decided when all of it is told; meanwhile the workers begin points of the next bracket, so that none is idle. A
trial whose rows say that it is surely not among the best 1 / reduction of all that were told after as many steps is not
promoted, whatever the rest of its bracket is like. Jamieson & Talwalkar, arXiv 1502.07943.
"""

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import pairwise

from finemesh.search.fidelities.base import Start
from finemesh.search.fidelities.history import History, measured
from finemesh.search.finish import LEADERS
from finemesh.trial import Hurdle

LAST = 2  # trials of a bracket that go to the end: between the best two a seed's noise would decide


@dataclass(frozen=True)
class Rung:
    trials: int
    steps: int


Shape = tuple[Rung, ...]  # the rungs of a bracket, the last of full length


@dataclass(frozen=True)
class Decision:
    """Of a rung: the trials to be promoted, best first; None while it is not decided. `kept`: whose checkpoints stay."""

    promoted: list[int] | None
    steps: int  # of the rung above
    kept: list[int]


@dataclass(frozen=True)
class Brackets:
    """`shapes` are taken in turn; the first bracket is as much wider as it takes to hold the `known` points."""

    shapes: Sequence[Shape]
    reduction: int
    known: int = 0

    def knowing(self, points: int) -> "Brackets":
        return replace(self, known=points)

    def next(self, history: History, may_begin: bool) -> Start | None:
        """Promotions come before new points, those of earlier brackets first."""
        for decision in self._decisions(history, may_begin):
            for number in decision.promoted or ():
                if number not in history.successors:
                    return self._start(history, decision.steps, number)
        return self._start(history, self._first_steps(len(history.points))) if may_begin else None

    @property
    def share(self) -> float:
        trained = sum(shape[0].trials * shape[0].steps + sum(above.trials * (above.steps - rung.steps)
                                                             for rung, above in pairwise(shape)) for shape in self.shapes)
        return trained / (self._turn * self.shapes[0][-1].steps)

    @property
    def earliest(self) -> int:
        return min(shape[0].steps for shape in self.shapes)

    def kept(self, history: History) -> Set[int]:
        """A bracket that the budget cut short may yet get more points, and may be decided as it is."""
        return {number for may_begin in (True, False) for decision in self._decisions(history, may_begin)
                for number in decision.kept}

    def _decisions(self, history: History, may_begin: bool) -> Iterator[Decision]:
        """Of every rung below the last that has been reached. A bracket that gets no more points is decided as it is."""
        begun = self._before(history.settled)
        for index in range(history.settled, len(history.points)):
            shape = self._bracket(index)
            members = history.points[begun:begun + shape[0].trials]
            if not members:
                return
            begun += len(members)
            all_begun = len(members) == shape[0].trials or not may_begin
            for rung, above in pairwise(shape):
                able = sorted((outcome.validation_loss or 0.0, number) for number in members
                              if (outcome := history.told.get(number)) and outcome.state == "pruned" and measured(outcome))
                ranked = [number for _, number in able]
                if not all_begun or not all(number in history.told for number in members):
                    yield Decision(None, above.steps, ranked)
                    break
                promoted = ranked[:math.ceil(above.trials * len(members) / rung.trials)]
                yield Decision(promoted, above.steps, promoted)
                members = [history.successors[number] for number in promoted if number in history.successors]
                all_begun = len(members) == len(promoted)
            else:
                history.settled += all_begun and may_begin and index == history.settled

    @property
    def _turn(self) -> int:
        """Points of all shapes together."""
        return sum(shape[0].trials for shape in self.shapes)

    @property
    def _wider(self) -> int:
        """Points that the first bracket has more than its shape."""
        return max(0, self.known - self.shapes[0][0].trials)

    def _bracket(self, index: int) -> Shape:
        shape = self.shapes[index % len(self.shapes)]
        if index or not self._wider:
            return shape
        share = self.known / shape[0].trials
        return tuple(Rung(max(LAST, round(rung.trials * share)), rung.steps) for rung in shape[:-1]) + shape[-1:]

    def _before(self, bracket: int) -> int:
        """Points of all brackets before this one."""
        turns, rest = divmod(bracket, len(self.shapes))
        return turns * self._turn + sum(shape[0].trials for shape in self.shapes[:rest]) + (self._wider if bracket else 0)

    def _first_steps(self, point: int) -> int:
        """Of the lowest rung of the bracket in which the point with this index is."""
        place = max(0, point - self._wider) % self._turn
        return next(shape[0].steps for index, shape in enumerate(self.shapes)
                    if place < sum(each[0].trials for each in self.shapes[:index + 1]))

    def _start(self, history: History, steps: int, continues: int | None = None) -> Start:
        told = history.after(steps)
        quota = LEADERS if steps == self.shapes[0][-1].steps else max(LEADERS, math.ceil(len(told) / self.reduction))
        if len(told) <= quota:
            return Start(steps, continues, ())
        loss, rival = told[quota - 1]
        return Start(steps, continues, (Hurdle(steps, loss, history.folder(rival)),))


def rungs(steps: int, min_steps: int | None, reduction: int) -> list[int]:
    """Steps of the rungs, the last the full length: three of them, or as many as have at least `min_steps`."""
    found = [steps]
    while len(found) < 3 or min_steps is not None:
        shorter = round(steps / reduction ** len(found))
        if not max(1, min_steps or 1) <= shorter < found[-1]:
            break
        found.append(shorter)
    return found[::-1]
