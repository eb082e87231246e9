"""A model's losses on the rows of a split, in batches of like length; the outputs of a classifier or regressor."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from finemesh.tuning.data.batches import Encoded, collate
from finemesh.tuning.evaluation.loss import BatchLosses, batch_losses, model_outputs
from finemesh.tuning.evaluation.metrics import classification_metrics, regression_metrics
from finemesh.tuning.evaluation.rival import Rival
from finemesh.tuning.kernels import runs_in_threads
from finemesh.tuning.models import TaskName
from finemesh.tuning.side_by_side import SIDES, side_by_side

EVALUATION_TOKENS = 2048  # padded tokens of an evaluation batch


@dataclass(frozen=True)
class Evaluation:
    """`loss` = sum(row_losses * row_weights) / sum(row_weights): the mean over scored tokens (or rows).

    `beaten`: a rival is surely better; rows that were not looked at weigh nothing, and `loss` is an estimate.
    """

    loss: float
    row_losses: list[float]
    row_weights: list[int]
    metrics: dict[str, float] = field(default_factory=dict)
    beaten: bool = False

    @property
    def scored_tokens(self) -> int:
        return sum(self.row_weights)


@torch.no_grad()
def evaluate(model: nn.Module, rows: Sequence[Encoded], task: TaskName, pad_id: int,
             device: torch.device | str = "cpu", rival: Rival | None = None) -> Evaluation:
    """The model's losses on `rows`, in their order. The model is put in evaluation mode and back.

    With a rival they are looked at part by part, and no further once the rival is surely better.
    """
    training = model.training
    model.eval()
    longest = max((len(row.input_ids) for row in rows), default=0)
    in_threads = task == "instruct" and SIDES * longest <= EVALUATION_TOKENS and runs_in_threads(model, longest)
    at_once = SIDES if in_threads else 1  # with as many tokens in all

    def result_of(indices: Sequence[int]) -> BatchLosses:
        return batch_losses(model, collate([rows[i] for i in indices], pad_id).to(device), task)

    try:
        sums = torch.zeros(len(rows), dtype=torch.float64)
        weights = torch.zeros(len(rows), dtype=torch.int64)
        outputs: dict[int, list[float]] = {}
        for part in rival.parts() if rival else [list(range(len(rows)))]:
            batches = [[part[i] for i in batch] for batch in evaluation_batches(
                [len(rows[i].input_ids) for i in part], EVALUATION_TOKENS // at_once)]
            for first in range(0, len(batches), at_once):
                beside = batches[first:first + at_once]
                for indices, result in zip(beside, side_by_side(result_of, beside), strict=True):
                    where = torch.tensor(indices)[result.rows.cpu()]
                    sums.index_add_(0, where, result.losses.double().cpu())
                    weights.index_add_(0, where, torch.ones_like(where))
                    if result.outputs is not None:
                        outputs.update(zip(indices, result.outputs.tolist(), strict=True))
            if rival and (estimate := rival.better(sums.numpy(), weights.numpy())) is not None:
                row_losses = (sums / weights.clamp(min=1)).tolist()
                return Evaluation(estimate, row_losses, weights.tolist(), beaten=True)
    finally:
        model.train(training)
    return Evaluation(
        loss=float(sums.sum() / weights.sum()), row_losses=(sums / weights.clamp(min=1)).tolist(),
        row_weights=weights.tolist(), metrics=_metrics(task, rows, outputs),
    )


def evaluation_batches(lengths: Sequence[int], tokens: int = EVALUATION_TOKENS) -> list[list[int]]:
    """Row indices sorted by length, in batches of at most `tokens` padded tokens (and at least one row)."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def predict_outputs(model: nn.Module, rows: Sequence[Encoded], pad_id: int,
                    device: torch.device | str = "cpu") -> list[list[float]]:
    """The outputs of a classifier or regressor, (rows, labels); the rows' labels are not read."""
    outputs: dict[int, list[float]] = {}
    with torch.no_grad():
        for indices in evaluation_batches([len(row.input_ids) for row in rows]):
            batch = collate([rows[i] for i in indices], pad_id).to(device)
            outputs.update(zip(indices, model_outputs(model, batch).tolist(), strict=True))
    return [outputs[i] for i in range(len(rows))]


def _metrics(task: TaskName, rows: Sequence[Encoded], outputs: dict[int, list[float]]) -> dict[str, float]:
    if task == "instruct":
        return {}
    truth = [row.label for row in rows]
    predicted = [outputs[i] for i in range(len(rows))]
    if task == "classify":
        return classification_metrics(truth, [max(range(len(o)), key=o.__getitem__) for o in predicted], len(predicted[0]))
    return regression_metrics(truth, [o[0] for o in predicted])
