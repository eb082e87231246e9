"""Prompt tuning: trained vectors before the embedded input, everything else frozen. Lester et al., arXiv 2104.08691."""

import itertools
from typing import Any

import torch
from peft import PeftConfig, PromptTuningConfig, PromptTuningInit
from torch import nn
from transformers import PreTrainedModel

from finemesh.hyperparameter import choice, integer, real
from finemesh.tuning.methods.base import PEFT_TASKS, Context, Point, PromptMethod, sizes


class Prompt(PromptMethod):
    name = "prompt"
    summary = "trained vectors before the input"
    source = "Lester et al., arXiv 2104.08691"
    space = {
        "length": integer(2, 100, 20, log=True),
        "init": choice(("vocabulary", "text", "random"), "vocabulary"),
        "learning_rate": real(1e-4, 1.0, 0.3, log=True),
    }
    reference = {"length": 20, "init": "vocabulary", "learning_rate": 0.3}
    peft_type = "PROMPT_TUNING"

    def configuration(self, model: PreTrainedModel, point: Point, context: Context) -> PeftConfig:
        return PromptTuningConfig(
            task_type=PEFT_TASKS[context.task], num_virtual_tokens=int(point["length"]), **sizes(model),
            prompt_tuning_init=PromptTuningInit.RANDOM,
        )

    def prepare(self, model: PreTrainedModel, point: Point, context: Context) -> nn.Module:
        tuned = super().prepare(model, point, context)
        tokens = self._initial_tokens(point, context)
        prompt: Any = next(p for name, p in tuned.named_parameters() if "prompt_encoder" in name)
        embedding: Any = model.get_input_embeddings()  # asked, not read: some scale what they hold
        with torch.no_grad():
            if tokens is None:  # as spread as the vocabulary is
                prompt.normal_(0.0, float(embedding(torch.tensor(_known(context), device=prompt.device)).float().std()))
            else:
                prompt.copy_(embedding(tokens.to(prompt.device)))
        return tuned

    def _initial_tokens(self, point: Point, context: Context) -> torch.Tensor | None:
        """The tokens whose vectors start the prompt: drawn from those of the training rows, or read off their text."""
        length = int(point["length"])
        if point["init"] == "random":
            return None
        if point["init"] == "text":
            return text_tokens(context, length)
        return drawn_tokens(context, length)


def drawn_tokens(context: Context, length: int) -> torch.Tensor:
    """(length,) of those that the training rows have, from torch's global generator."""
    known = torch.tensor(_known(context))
    return known[torch.randint(len(known), (length,))]


def text_tokens(context: Context, length: int) -> torch.Tensor:
    """(length,) what the training rows begin with, one after the other, and from the start again where they end."""
    ids: list[int] = []
    for row in itertools.cycle(context.encoded):
        ids += row.input_ids
        if len(ids) >= length:
            return torch.tensor(ids[:length])
    raise AssertionError("no rows")


def _known(context: Context) -> list[int]:
    return sorted({i for row in context.encoded for i in row.input_ids})
