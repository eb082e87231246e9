"""Losses from logits, per scored token (instruct) or per row (classify, regress); never a model's own `.loss`.

The vocabulary head sees only the positions that predict a scored token. Causal models get right-padded rows and no mask:
a row never looks at what comes after it, so that is exact.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from finemesh.tuning.data.batches import Batch, Encoded, collate
from finemesh.tuning.evaluation.metrics import classification_metrics, regression_metrics
from finemesh.tuning.kernels import scored_losses
from finemesh.tuning.models import TaskName

EVALUATION_TOKENS = 2048  # padded tokens of an evaluation batch


@dataclass(frozen=True)
class BatchLosses:
    losses: torch.Tensor  # (scored,) float32, nats
    rows: torch.Tensor  # (scored,) the batch's row of each
    outputs: torch.Tensor | None  # (batch, labels) logits for classify, (batch, 1) predictions for regress


@dataclass(frozen=True)
class Evaluation:
    """`loss` = sum(row_losses * row_weights) / sum(row_weights): the mean over scored tokens (or rows)."""

    loss: float
    row_losses: list[float]
    row_weights: list[int]
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def scored_tokens(self) -> int:
        return sum(self.row_weights)


def batch_losses(model: nn.Module, batch: Batch, task: TaskName) -> BatchLosses:
    if task == "instruct":
        losses = scored_losses(model, batch)  # the fast way, where this model has one
        if losses is None:
            with _head_at(model, batch.scored):
                logits = model(input_ids=batch.input_ids, use_cache=False).logits  # (scored, vocab)
            losses = F.cross_entropy(logits.float(), batch.input_ids[batch.scored], reduction="none")
        return BatchLosses(losses, batch.scored.nonzero()[:, 0], None)
    outputs = _outputs(model, batch)
    rows = torch.arange(len(outputs), device=outputs.device)
    assert batch.labels is not None
    if task == "classify":
        return BatchLosses(F.cross_entropy(outputs, batch.labels, reduction="none"), rows, outputs)
    return BatchLosses((outputs[:, 0] - batch.labels.float()) ** 2, rows, outputs)


@torch.no_grad()
def evaluate(model: nn.Module, rows: Sequence[Encoded], task: TaskName, pad_id: int,
             device: torch.device | str = "cpu") -> Evaluation:
    """The model's losses on `rows`, in their order. The model is put in evaluation mode and back."""
    training = model.training
    model.eval()
    try:
        sums = torch.zeros(len(rows), dtype=torch.float64)
        weights = torch.zeros(len(rows), dtype=torch.int64)
        outputs: dict[int, list[float]] = {}
        for indices in evaluation_batches([len(row.input_ids) for row in rows]):
            batch = collate([rows[i] for i in indices], pad_id).to(device)
            result = batch_losses(model, batch, task)
            where = torch.tensor(indices)[result.rows.cpu()]
            sums.index_add_(0, where, result.losses.double().cpu())
            weights.index_add_(0, where, torch.ones_like(where))
            if result.outputs is not None:
                outputs.update(zip(indices, result.outputs.tolist(), strict=True))
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
            outputs.update(zip(indices, _outputs(model, batch).tolist(), strict=True))
    return [outputs[i] for i in range(len(rows))]


def _outputs(model: Any, batch: Batch) -> torch.Tensor:
    """(batch, labels) float32. A causal model's head reads the last token of each row, wherever vectors or padding lie.

    transformers looks for that token by the padding's id, and not at all where a method gives it embedded input.
    """
    head = next((module for name, module in model.named_modules() if name.split(".")[-1] == "score"), None)
    if head is None:
        return model(input_ids=batch.input_ids, attention_mask=_mask(batch), **_segments(batch)).logits.float()

    def last(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = arguments[0]  # (batch, virtual + time, width)
        ends = batch.lengths - 1 + hidden.size(1) - batch.input_ids.size(1)
        return (hidden[torch.arange(len(ends), device=ends.device), ends][:, None].expand_as(hidden),)

    handle = head.register_forward_pre_hook(last)
    try:
        return model(input_ids=batch.input_ids).logits.float()
    finally:
        handle.remove()


@contextmanager
def _head_at(model: Any, scored: torch.Tensor) -> Iterator[None]:
    """Let the output layer see only the positions before scored tokens: its logits are (scored, vocab).

    Vectors that a method puts before the input make the hidden states longer; positions are counted from the right.
    """
    def select(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = arguments[0]  # (batch, virtual + time, width)
        hidden = hidden[:, hidden.size(1) - scored.size(1):]
        return (hidden[:, :-1][scored[:, 1:]],)

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def _mask(batch: Batch) -> torch.Tensor:
    return (torch.arange(batch.input_ids.size(1), device=batch.input_ids.device) < batch.lengths[:, None]).long()


def _segments(batch: Batch) -> dict[str, torch.Tensor]:
    return {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}


def _metrics(task: TaskName, rows: Sequence[Encoded], outputs: dict[int, list[float]]) -> dict[str, float]:
    if task == "instruct":
        return {}
    truth = [row.label for row in rows]
    predicted = [outputs[i] for i in range(len(rows))]
    if task == "classify":
        return classification_metrics(truth, [max(range(len(o)), key=o.__getitem__) for o in predicted])
    return regression_metrics(truth, [o[0] for o in predicted])
