"""What fidelity rules look at: which trials have begun, what the told ones reached after how many steps.

Trials that copy an earlier one are not in it. Losses are compared only after the same number of steps.
"""

from bisect import insort
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from finemesh.run import RunFolder
from finemesh.trial import Outcome


@dataclass
class Drop:
    """By how much the loss of complete trials fell from a step to the end."""

    count: int = 0
    total: float = 0.0
    largest: float = 0.0

    def add(self, fall: float) -> None:
        self.count, self.total, self.largest = self.count + 1, self.total + fall, max(self.largest, fall)


class History:
    """`points` are the trials that began a point, in order; `successors` maps a trial to the one that continues it."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self.points: list[int] = []
        self.successors: dict[int, int] = {}
        self.told: dict[int, Outcome] = {}
        self.settled = 0  # brackets, from the first, in which nothing is left to decide
        self.resting: set[int] = set()  # told ones that may have a checkpoint
        self.complete: list[tuple[float, int]] = []  # (loss, number) of the feasible ones, best first
        self._finals: list[tuple[float, int]] = []  # the same in the order told
        self._drops: dict[int, Drop] = defaultdict(Drop)
        self._curves_read = 0
        self._after: dict[int, list[tuple[float, int]]] = defaultdict(list)

    def begin(self, number: int, continues: int | None) -> None:
        if continues is None:
            self.points.append(number)
        else:
            self.successors[continues] = number
            self.resting.discard(continues)

    def tell(self, outcome: Outcome) -> None:
        number, loss = outcome.number, outcome.validation_loss
        self.told[number] = outcome
        if outcome.state == "pruned":
            self.resting.add(number)
        if loss is None or not measured(outcome):
            return
        insort(self._after[outcome.steps], (loss, number))
        if outcome.state == "complete":
            insort(self.complete, (loss, number))
            self._finals.append((loss, number))

    @property
    def drops(self) -> Mapping[int, Drop]:
        """By step. Curves are read when a rule or a forecast asks for them."""
        for loss, number in self._finals[self._curves_read:]:
            for step, earlier in self.losses(number).items():
                self._drops[step].add(earlier - loss)
        self._curves_read = len(self._finals)
        return self._drops

    def after(self, steps: int) -> list[tuple[float, int]]:
        """(loss, number) of the trials that were told after so many steps with every row validated, best first."""
        return self._after[steps]

    def losses(self, number: int) -> Mapping[int, float]:
        """The validation losses along a trial's way, by step."""
        return {line["step"]: line["validation_loss"] for line in self._run.curve(number)
                if line.get("validation_loss") is not None}

    def folder(self, number: int) -> str:
        return self._run.trial(number).name

    def forecast(self, outcome: Outcome) -> float | None:
        """The loss that a pruned trial would have had in the end: lower by the complete ones' mean fall from its step on.

        A forecast does not beat a measurement: it is at least the best complete loss.
        """
        if outcome.state != "pruned" or outcome.validation_loss is None:
            return None
        drop = self.drops.get(outcome.steps)
        ahead = outcome.validation_loss - (drop.total / drop.count if drop else 0.0)
        return max(ahead, self.complete[0][0]) if self.complete else ahead


def measured(outcome: Outcome) -> bool:
    """It has a loss that counts, of every row, and keeps the constraints."""
    return (outcome.state in ("complete", "pruned") and outcome.error is None and outcome.validation_loss is not None
            and all(excess <= 0 for excess in outcome.constraints.values()))
