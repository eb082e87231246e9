"""Every trial goes its full length."""

from collections.abc import Set
from dataclasses import dataclass

from finemesh.search.fidelities.base import Start
from finemesh.search.fidelities.history import History


@dataclass(frozen=True)
class Full:
    steps: int
    share = 1.0

    @property
    def earliest(self) -> int:
        return self.steps

    def knowing(self, points: int) -> "Full":
        return self

    def next(self, history: History, may_begin: bool) -> Start | None:
        return Start(self.steps) if may_begin else None

    def kept(self, history: History) -> Set[int]:
        return frozenset()
