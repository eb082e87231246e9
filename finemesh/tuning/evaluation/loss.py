"""Losses from logits, per scored token (instruct) or per row (classify, regress); never a model's own `.loss`.

The vocabulary head sees only the positions that predict a scored token. Causal models get right-padded rows and no mask:
a row never looks at what comes after it, so that is exact.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from finemesh.tuning.data.batches import Batch
from finemesh.tuning.features import Probe, States
from finemesh.tuning.kernels import scored_losses, scored_states
from finemesh.tuning.kernels.vocabulary import VocabularyHead
from finemesh.tuning.models import TaskName


@dataclass(frozen=True)
class BatchLosses:
    losses: torch.Tensor  # (scored,) float32, nats
    rows: torch.Tensor  # (scored,) the batch's row of each
    outputs: torch.Tensor | None  # (batch, labels) logits for classify, (batch, 1) predictions for regress


def batch_losses(model: nn.Module, batch: Batch, task: TaskName) -> BatchLosses:
    if isinstance(model, Probe):
        return _probe_losses(model, batch, task)
    if task == "instruct":
        losses = scored_losses(model, batch)  # the fast way, where this model has one
        if losses is None:
            with _head_at(model, batch.scored):
                logits = model(**_inputs(model, batch, task)).logits  # (scored, vocab)
            losses = F.cross_entropy(logits.float(), batch.input_ids[batch.scored], reduction="none")
        return BatchLosses(losses, batch.scored.nonzero()[:, 0], None)
    outputs = model_outputs(model, batch)
    rows = torch.arange(len(outputs), device=outputs.device)
    assert batch.labels is not None
    if task == "classify":
        return BatchLosses(F.cross_entropy(outputs, batch.labels, reduction="none"), rows, outputs)
    return BatchLosses((outputs[:, 0] - batch.labels.float()) ** 2, rows, outputs)


def _probe_losses(probe: Probe, batch: Batch, task: TaskName) -> BatchLosses:
    """From the head alone, where the body's states are known."""
    states = probe.features.of(batch, lambda: _body_states(probe, batch, task))
    if task == "instruct" and len(states) > 1:
        head: Any = probe.model.get_output_embeddings()
        hidden, *others = states
        with torch.autocast(hidden.device.type, enabled=False):
            losses = head.losses(hidden, batch.input_ids[batch.scored], others)
        return BatchLosses(losses, batch.scored.nonzero()[:, 0], None)
    with _told(probe, batch, task, states):
        return batch_losses(probe.model, batch, task)


@contextmanager
def _told(probe: Probe, batch: Batch, task: TaskName, states: States) -> Iterator[None]:
    """The model's body gives these states instead of computing any."""
    body: Any = probe.body
    body.forward = lambda *_, **__: _as_body(probe, batch, task, states)
    try:
        yield
    finally:
        del body.forward


@torch.no_grad()
def _body_states(probe: Probe, batch: Batch, task: TaskName) -> States:
    """What the head looks at: states before scored tokens, (scored, width), with what the rest of the vocabulary is to them
    where that is all that can be wanted; a causal classifier's last states, (batch, width); of an encoder all of them,
    (batch, time, width), and what its body has pooled."""
    if task == "instruct":
        hidden, alone = _scored_states(probe, batch)
        head = probe.model.get_output_embeddings()
        return (hidden, *head.others(hidden, batch.input_ids[batch.scored])) if alone else (hidden,)
    outputs = _body_outputs(probe, batch, task)
    hidden = outputs.last_hidden_state
    where = _looked_at(probe.model, batch, task)
    if where is not None:
        return (hidden[where],)
    pooled = getattr(outputs, "pooler_output", None)
    return (hidden,) if pooled is None else (hidden, pooled)


def _scored_states(probe: Probe, batch: Batch) -> tuple[torch.Tensor, bool]:
    """(scored, width), and whether a VocabularyHead's logits of them are the model's, which may go on after its head."""
    head = probe.model.get_output_embeddings()
    known = isinstance(head, VocabularyHead)
    if (fast := scored_states(probe.model, batch)) is not None:
        return fast, known
    hidden = _body_outputs(probe, batch, "instruct").last_hidden_state[_looked_at(probe.model, batch, "instruct")]
    if not known:
        return hidden, False
    with _told(probe, batch, "instruct", (hidden,)), _head_at(probe.model, batch.scored):
        logits = probe.model(**_inputs(probe.model, batch, "instruct")).logits
    kind = hidden.device.type
    computed = hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden
    alone = torch.allclose(logits.float(), head(hidden).float(), rtol=0, atol=0, equal_nan=True)
    return (computed, True) if alone else (hidden, False)


def _body_outputs(probe: Probe, batch: Batch, task: TaskName) -> Any:
    """A classifier or regressor is asked itself: some tell their body more than they are told (Longformer where to look)."""
    if task == "instruct":
        return probe.body(**_inputs(probe.model, batch, task))
    found: list[Any] = []
    training = probe.training
    handle = probe.body.register_forward_hook(lambda module, given, outputs: found.append(outputs))
    try:
        probe.eval()  # the head's dropout draws nothing for what is computed only once
        probe.model(**_inputs(probe.model, batch, task))
    finally:
        handle.remove()
        probe.train(training)
    return found[0]


class _Body(BaseModelOutputWithPoolingAndCrossAttentions):
    """Of what else a body gives (a router's logits, a cache), it has nothing."""

    def __getattr__(self, name: str) -> None:
        return None


def _as_body(probe: Probe, batch: Batch, task: TaskName, states: States) -> Any:
    """The body's output as its model takes it, zero where the head does not look."""
    hidden = states[0]
    where = _looked_at(probe.model, batch, task)
    if where is not None:
        hidden = hidden.new_zeros(*batch.input_ids.shape, hidden.size(-1))
        hidden[where] = states[0]
    return _Body(last_hidden_state=hidden, pooler_output=states[1] if len(states) > 1 else None)


def _looked_at(model: nn.Module, batch: Batch, task: TaskName) -> tuple[torch.Tensor, ...] | None:
    """Rows and positions of the states that the head reads; None for all."""
    if task == "instruct":
        rows, positions = batch.scored.nonzero(as_tuple=True)
        return rows, positions - 1
    if _causal_head(model) is None:
        return None
    return torch.arange(len(batch.lengths), device=batch.lengths.device), batch.lengths - 1


def model_outputs(model: Any, batch: Batch) -> torch.Tensor:
    """(batch, labels) float32. A causal model's head reads the last token of each row, wherever vectors or padding lie.

    transformers looks for that token by the padding's id, and not at all where a method gives it embedded input.
    """
    head = _causal_head(model)
    if head is None:
        return model(**_inputs(model, batch, "classify")).logits.float()

    def last(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = arguments[0]  # (batch, virtual + time, width)
        ends = batch.lengths - 1 + hidden.size(1) - batch.input_ids.size(1)
        return (hidden[torch.arange(len(ends), device=ends.device), ends][:, None].expand_as(hidden),)

    handle = head.register_forward_pre_hook(last)
    try:
        return model(**_inputs(model, batch, "classify")).logits.float()
    finally:
        handle.remove()


def _causal_head(model: nn.Module) -> nn.Module | None:
    """The head of a causal model that classifies or regresses."""
    return next((module for name, module in model.named_modules() if name.split(".")[-1] == "score"), None)


def _inputs(model: nn.Module, batch: Batch, task: TaskName) -> dict[str, Any]:
    if task == "instruct":
        return {"input_ids": batch.input_ids, "use_cache": False}
    if _causal_head(model) is not None:
        return {"input_ids": batch.input_ids}
    segments = {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}
    return {"input_ids": batch.input_ids, "attention_mask": _mask(batch), **segments}


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
