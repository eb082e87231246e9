"""A split as a worker holds it: its examples and their token rows."""

from dataclasses import dataclass, replace
from functools import cached_property

from finemesh.tuning.data.batches import Encoded, scored_tokens
from finemesh.tuning.data.examples import Dialogue, Example
from finemesh.tuning.evaluation.evaluation import Evaluation
from finemesh.tuning.evaluation.metrics import task_losses


@dataclass(frozen=True)
class Split:
    examples: tuple[Example, ...]
    rows: tuple[Encoded, ...]

    @property
    def tokens(self) -> int:
        return sum(len(row.input_ids) for row in self.rows)

    @cached_property
    def scored_tokens(self) -> list[int]:
        """Their vocabulary, ascending."""
        return scored_tokens(self.rows)

    def by_task(self, evaluation: Evaluation) -> Evaluation:
        """With the loss of every task among its metrics, where the rows are instructions of several."""
        tasks = [example.task if isinstance(example, Dialogue) else "" for example in self.examples]
        metrics = task_losses(tasks, evaluation.row_losses, evaluation.row_weights)
        return replace(evaluation, metrics=evaluation.metrics | metrics)
