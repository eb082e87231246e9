"""Pseudo tokens inside a row: ids beyond every vocabulary, in whose places the model's own embedding gives trained vectors.

PEFT puts vectors only before the input. Here they are tokens like others (not scored, counted, packed, generated from), so
nothing but the embedding needs to know of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finemesh.tuning.data.batches import Encoded

FIRST = 1 << 30  # the id of the first pseudo token


class PseudoTokens(nn.Module):
    """The embedding `words` of real tokens; the vectors of `encoder`, (1, length) -> (1, length, width), of pseudo ones."""

    def __init__(self, words: nn.Module, encoder: nn.Module, length: int) -> None:
        super().__init__()
        self.words, self.encoder, self.length = words, encoder, length

    def vectors(self) -> torch.Tensor:
        """(length, width) float32"""
        device = next(self.encoder.parameters()).device
        vectors: torch.Tensor = self.encoder(torch.arange(self.length, device=device)[None])[0]
        return vectors

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(...) -> (..., width)"""
        pseudo = ids >= FIRST
        known: torch.Tensor = self.words(ids.masked_fill(pseudo, 0))
        if not pseudo.any():
            return known
        return known.index_put((pseudo,), self.vectors()[ids[pseudo] - FIRST].to(known.dtype))


def install(model: PreTrainedModel, encoder: nn.Module, length: int) -> None:
    model.set_input_embeddings(PseudoTokens(model.get_input_embeddings(), encoder, length))


def pseudo_tokens(model: nn.Module) -> PseudoTokens:
    found: Any = model
    embedding: PseudoTokens = found.get_input_embeddings()
    return embedding


def uninstall(model: PreTrainedModel) -> None:
    model.set_input_embeddings(pseudo_tokens(model).words)


def placed(row: Encoded, before: int, after: int, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """`before` pseudo tokens where the row begins, `after` more directly before its last answer; without one, at its end.

    A special token that opens or closes every text stays where it is.
    """
    ids = row.input_ids
    opens, closes = (tokenizer.cls_token_id, tokenizer.bos_token_id), tokenizer.sep_token_id
    start = int(ids[0] in opens)
    end = len(ids) - int(len(ids) > 1 and ids[-1] == closes)
    if any(row.scored):
        end = max(i for i, scored in enumerate(row.scored) if scored)
        while row.scored[end - 1]:  # the first token is never scored
            end -= 1
    start = min(start, end) if before else 0

    def inserted(values: list[Any], first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
        return [*values[:start], *first, *values[start:end], *second, *values[end:]]

    types = row.token_type_ids
    return replace(
        row, input_ids=inserted(ids, range(FIRST, FIRST + before), range(FIRST + before, FIRST + before + after)),
        scored=inserted(row.scored, [False] * before, [False] * after),
        token_type_ids=None if types is None else inserted(types, types[:1] * before, types[end - 1:end] * after))
