"""Head only: the frozen model's features under a trained output layer, the vocabulary's for instruct, the label's otherwise.

What the frozen model gives the head is computed once for all runs (finemesh/tuning/features.py); it is that without dropout,
and only what a classifier has just before its head is drawn. Of the vocabulary's head the rows of the tokens that training
answers hold are trained one by one, and all others by one increment (kernels/vocabulary.py). A head that is tied to the input
embeddings is untied: only the output side is trained.
"""

import copy
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import nn
from transformers import PreTrainedModel

from finemesh.hyperparameter import real
from finemesh.tuning.features import Probe
from finemesh.tuning.heads import HEADS
from finemesh.tuning.kernels.vocabulary import VocabularyHead
from finemesh.tuning.methods.base import Context, Method, Point, save_whole
from finemesh.tuning.models import TaskName


def head_name(model: PreTrainedModel) -> str:
    """The dotted name of the output layer."""
    output = model.get_output_embeddings()
    if output is not None:
        return next(name for name, module in model.named_modules() if module is output)
    return next(name for name in HEADS if hasattr(model, name))


class Head(Method):
    name = "head"
    summary = "the output layer only"
    source = "Alain & Bengio, arXiv 1610.01644"
    space = {
        "learning_rate": real(1e-6, 1.0, 1e-3, log=True),
        "weight_decay": real(0.0, 0.3, 0.0),
    }
    reference = {"learning_rate": 1e-3, "weight_decay": 0.0}
    mergeable = True
    gguf = True
    starts_at_base = True

    def unfit(self, model: PreTrainedModel, task: TaskName) -> str | None:
        if model.get_output_embeddings() is None and not any(hasattr(model, name) for name in HEADS):
            return f"head finds no output layer in {type(model).__name__}"
        return None

    def trainable(self, model: PreTrainedModel, point: Point, context: Context) -> int:
        head = model.get_submodule(head_name(model))
        if not _by_token(head, context):
            return sum(parameter.numel() for parameter in head.parameters())
        a_token = sum(parameter.numel() // len(parameter) for parameter in head.parameters())
        return (len(context.answer_tokens) + 1) * a_token

    def prepare(self, model: PreTrainedModel, point: Point, context: Context) -> nn.Module:
        name = head_name(model)
        frozen = model.get_submodule(name)
        if _by_token(frozen, context):
            trained: nn.Module = VocabularyHead(frozen, torch.tensor(context.answer_tokens))
        else:
            trained = copy.deepcopy(frozen).float().requires_grad_(True)
        model.set_submodule(name, trained)
        tied = getattr(model.config, "tie_word_embeddings", False)
        object.__setattr__(model, "frozen_head", (frozen, tied))  # not a submodule
        model.config.tie_word_embeddings = False
        return Probe(model, context.features)

    def remove(self, tuned: Any) -> PreTrainedModel:
        model: Any = tuned.model
        frozen, model.config.tie_word_embeddings = model.frozen_head
        del model.frozen_head
        model.set_submodule(head_name(model), frozen)
        base: PreTrainedModel = model.requires_grad_(False)
        return base.eval()

    def save(self, tuned: Any, folder: Path, base_name: str) -> None:
        model = tuned.model
        name = head_name(model)
        head = model.get_submodule(name)
        if isinstance(head, VocabularyHead):
            model.set_submodule(name, head.whole())
        try:
            save_whole(model, folder)
        finally:
            model.set_submodule(name, head)

    def load(self, model: PreTrainedModel, folder: Path) -> nn.Module:
        return type(model).from_pretrained(folder, dtype=model.dtype).eval()


def _by_token(head: nn.Module, context: Context) -> TypeGuard[nn.Linear]:
    """Whether it is the vocabulary's, in the form that all language models but a few give it."""
    return context.task == "instruct" and isinstance(head, nn.Linear)
