"""What passes between the two halves: a Job goes to the blackbox, an Outcome comes back and is written as outcome.json.

The order at the end of a trial: outcome.json first (atomically), then the store is told. Resuming adopts an outcome
that the store does not know.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from finemesh.disk import whole
from finemesh.errors import undamaged

State = Literal["complete", "pruned", "infeasible", "failed"]
SCORES = {"classify": ("accuracy", "f1", "matthews"), "regress": ("pearson", "spearman")}  # by task; higher is better
HIGHER_IS_BETTER = frozenset(name for names in SCORES.values() for name in names)


@dataclass(frozen=True)
class Hurdle:
    """Above `loss` after `step` updates a trial is not worth going on with.

    `rival`: the folder, beside the trial's own, of a leader with a loss for every validation row after as many updates.
    """

    step: int
    loss: float
    rival: str


@dataclass(frozen=True)
class Job:
    """One run to do: `hyperparameters` is the flat dict of active ones, without the method's prefix."""

    number: int
    method: str
    hyperparameters: Mapping[str, Any]
    seed: int
    steps: int  # optimizer steps: the fidelity
    folder: Path
    constraints: Mapping[str, float] = field(default_factory=dict)  # bounds on the outcome's numbers: upper; lower for SCORES
    continues: int | None = None  # the trial whose checkpoint lies in the folder
    hurdles: Sequence[Hurdle] | None = None  # None: nothing is compared, the losses of single rows are not kept
    foreseen: str | None = None  # whether it was expected to keep the constraints: feasible, infeasible, or no telling

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"folder": str(self.folder.absolute())}  # a worker may be elsewhere

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "Job":
        hurdles = fields.get("hurdles")
        return Job(**{**fields, "folder": Path(fields["folder"]),
                      "hurdles": None if hurdles is None else [Hurdle(**hurdle) for hurdle in hurdles]})


@dataclass(frozen=True)
class Outcome:
    """Losses in nats a scored token (a row for classify, squared error for regress); memory in MB of 1e6 bytes.

    `peak_memory_mb` is what the trial added to `base_memory_mb`, the worker with its model loaded.
    `constraints` holds value - bound (bound - value for SCORES): at most 0 is feasible. A pruned trial went `steps` of the
    full length; without an error it may go on, with one it was surely no leader or would break a bound, and its loss is
    estimated where not every row was looked at. Its constraints are a whole trial's, as far as it tells (constraints.py).
    """

    number: int
    state: State
    method: str
    hyperparameters: Mapping[str, Any]
    seed: int
    steps: int = 0
    validation_loss: float | None = None
    scored_tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    preparation_seconds: float = 0.0  # of them, those before the first step
    peak_memory_mb: float | None = None
    base_memory_mb: float | None = None
    trainable_parameters: int | None = None
    adapter_mb: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    constraints: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    duplicate_of: int | None = None  # the earlier trial with the same active point, whose outcome this copies
    continues: int | None = None  # the pruned trial that this one took up; steps, tokens and seconds are those of both
    started: bool = True  # False: it was foreseen to be infeasible
    foreseen: str | None = None  # feasible or infeasible, as its job has it
    whole_seconds: float | None = None  # of a pruned trial, what its full length was expected to take

    @property
    def is_new(self) -> bool:
        """One of the trials asked for: it was run, and is neither a copy of an earlier one nor its continuation."""
        return self.started and self.duplicate_of is None and self.continues is None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def renumbered(self, number: int, *, duplicate_of: int) -> "Outcome":
        return replace(self, number=number, duplicate_of=duplicate_of, continues=None, seconds=0.0, preparation_seconds=0.0,
                       trained_tokens=0)


def write_json(path: Path, document: Any) -> None:
    """Whole or not at all: a full disk or a kill leaves the former file, or none."""
    with whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(document, file, ensure_ascii=False, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> dict[str, Any] | None:
    """The object that the file holds; None where there is no such file. InputError where it is damaged."""
    if not path.exists():
        return None
    with undamaged(path):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
        return found


def write_outcome(folder: Path, outcome: Outcome) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "outcome.json", outcome.to_json())


def read_outcome(folder: Path) -> Outcome | None:
    """None where the trial has not ended."""
    path = folder / "outcome.json"
    fields = read_json(path)
    with undamaged(path):
        return None if fields is None else Outcome(**fields)
