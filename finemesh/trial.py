"""What passes between the two halves: a Job goes to the blackbox, an Outcome comes back and is written as outcome.json.

The order at the end of a trial: outcome.json first (atomically), then the store is told. Resuming adopts an outcome
that the store does not know.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

State = Literal["complete", "pruned", "infeasible", "failed"]


@dataclass(frozen=True)
class Job:
    """One run to do: `hyperparameters` is the flat dict of active ones, without the method's prefix."""

    number: int
    method: str
    hyperparameters: Mapping[str, Any]
    seed: int
    steps: int  # optimizer steps: the fidelity
    folder: Path
    constraints: Mapping[str, float] = field(default_factory=dict)  # upper bounds on numbers of the outcome

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"folder": str(self.folder.absolute())}  # a worker may be elsewhere

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "Job":
        return Job(**{**fields, "folder": Path(fields["folder"])})


@dataclass(frozen=True)
class Outcome:
    """Losses in nats a scored token (a row for classify, squared error for regress); memory in MB of 1e6 bytes.

    `peak_memory_mb` is what the trial added to `base_memory_mb`, the worker with its model loaded.
    `constraints` holds value - bound: at most 0 is feasible.
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
    peak_memory_mb: float | None = None
    base_memory_mb: float | None = None
    trainable_parameters: int | None = None
    adapter_mb: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    constraints: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    duplicate_of: int | None = None  # the earlier trial with the same active point, whose outcome this copies

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def renumbered(self, number: int, *, duplicate_of: int) -> "Outcome":
        return replace(self, number=number, duplicate_of=duplicate_of, seconds=0.0, trained_tokens=0)


def write_json(path: Path, document: Any) -> None:
    """Whole or not at all: a full disk or a kill leaves the former file, or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(document, file, ensure_ascii=False, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_outcome(folder: Path, outcome: Outcome) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "outcome.json", outcome.to_json())


def read_outcome(folder: Path) -> Outcome | None:
    """None where the trial has not ended."""
    path = folder / "outcome.json"
    return Outcome(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
