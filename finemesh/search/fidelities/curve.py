"""A rule on learning curves: a trial goes on as long as it can still be among the leaders.

It cannot, where even the largest fall that a complete trial has made from that step on would leave it above the last of the
leaders. So a rule needs as many complete trials as there are leaders; it follows the learning curves of this study,
not a family of functions (as Domhan, Springenberg & Hutter, IJCAI 2015, do).
"""

from collections.abc import Set
from dataclasses import dataclass

from finemesh.search.fidelities.base import Start
from finemesh.search.fidelities.history import History
from finemesh.search.finish import LEADERS
from finemesh.trial import Hurdle

FIRST_SHARE = 0.1  # of the steps: nobody is judged by less, unless min_steps says so


@dataclass(frozen=True)
class Curve:
    steps: int
    min_steps: int
    share = 1.0  # where no trial is hopeless

    @property
    def earliest(self) -> int:
        return self.min_steps

    def knowing(self, points: int) -> "Curve":
        return self

    def next(self, history: History, may_begin: bool) -> Start | None:
        if not may_begin:
            return None
        if len(history.complete) < LEADERS:
            return Start(self.steps, None, ())
        last, rival = history.complete[LEADERS - 1]
        hurdles = [Hurdle(step, last + history.drops[step].largest, history.folder(rival))
                   for step in sorted(history.losses(rival)) if self.min_steps <= step]
        return Start(self.steps, None, tuple(hurdles))

    def kept(self, history: History) -> Set[int]:
        return frozenset()


def curve(steps: int, min_steps: int | None, reduction: int) -> Curve:
    return Curve(steps, min_steps or max(1, round(FIRST_SHARE * steps)))
