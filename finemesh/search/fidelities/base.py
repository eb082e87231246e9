"""What a fidelity rule is: it says what trial n is, a new point or the continuation of an earlier one, and how far it goes.

A rule is asked when exactly the trials up to n - in_flight are told, and sees no more than these and which others have
begun: the order in which trials end changes neither points nor promotions. A promotion is a trial of its own that takes up
the checkpoint of the one that it continues, so that no outcome ever changes. Fidelity is counted in optimizer steps.
"""

from collections.abc import Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from finemesh.errors import undamaged
from finemesh.search.fidelities.history import History
from finemesh.trial import Hurdle, read_json, write_json


@dataclass(frozen=True)
class Start:
    """What a trial is to do, decided once: a search that goes on reads it back."""

    steps: int
    continues: int | None = None  # None: a new point
    hurdles: tuple[Hurdle, ...] | None = None  # None: nobody looks at the single rows
    foreseen: str | None = None  # as its job has it

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "start.json", asdict(self))

    @staticmethod
    def read(folder: Path) -> "Start | None":
        file = folder / "start.json"
        fields = read_json(file)
        if fields is None:
            return None
        with undamaged(file):
            hurdles = fields["hurdles"]
            return Start(**fields | {"hurdles": None if hurdles is None else tuple(Hurdle(**hurdle) for hurdle in hurdles)})


class Fidelity(Protocol):
    @property
    def share(self) -> float:
        """At most so much of a full trial is trained for each point, on average over many."""

    @property
    def earliest(self) -> int:
        """The fewest steps that a trial is judged by."""

    def knowing(self, points: int) -> "Fidelity":
        """The rule of a search that knows so many of its points from the beginning."""

    def next(self, history: History, may_begin: bool) -> Start | None:
        """What the next trial is; None where that is not known yet. `may_begin`: new points are left in the budget."""

    def kept(self, history: History) -> Set[int]:
        """The told trials whose checkpoints may be needed."""
