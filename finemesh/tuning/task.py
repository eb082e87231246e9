"""What a worker loads: the model, the splits and how to score. Fixed once a study, kept as task.json in the run folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finemesh.errors import undamaged
from finemesh.tuning.models import ModelSource, TaskName
from finemesh.tuning.precision import Precision


@dataclass(frozen=True)
class Task:
    source: ModelSource
    task: TaskName
    splits: Path  # the folder with train.jsonl, validation.jsonl and test.jsonl
    labels: tuple[str, ...]  # of classify, in the order of their indices
    max_length: int
    batch_size: int
    accumulation: int
    steps: int  # of a full trial: the horizon of the schedule
    seed: int
    precision: Precision
    threads: int
    validations: int | None = None  # along the way of a full trial; None: as many as cost little beside the training

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"splits": str(self.splits)}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "Task":
        return Task(**{**fields, "source": ModelSource(**fields["source"]), "precision": Precision(**fields["precision"]),
                       "splits": Path(fields["splits"]), "labels": tuple(fields["labels"])})

    @staticmethod
    def read(path: Path) -> "Task":
        with undamaged(path):
            return Task.from_json(json.loads(path.read_text(encoding="utf-8")))
