"""Instruction prompt tuning: trained vectors, then an instruction and demonstrations in words, then the input; only the
vectors are trained. Singhal et al. (Med-PaLM), arXiv 2212.13138."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftConfig, PromptTuningConfig, PromptTuningInit
from torch import nn
from transformers import PreTrainedModel

from finemesh.hyperparameter import choice, integer, real
from finemesh.tuning.data.batches import Encoded
from finemesh.tuning.data.examples import Example
from finemesh.tuning.methods.base import PEFT_TASKS, Context, Point, PromptMethod, sizes
from finemesh.tuning.methods.prompt import drawn_tokens
from finemesh.tuning.methods.prompting import CHOSEN, INSTRUCTION, Prompting

SPREAD = 0.5  # the vectors start uniform in [-0.5, 0.5]


class InstructionPrompt(Prompting, PromptMethod):
    name = "instruction_prompt"
    summary = "trained vectors before an instruction and demonstrations"
    source = "Singhal et al., arXiv 2212.13138"
    space = {
        "length": integer(4, 200, 100, log=True),
        "init": choice(("uniform", "vocabulary"), "vocabulary"),
        "learning_rate": real(1e-4, 1.0, 3e-3, log=True),
        "k": integer(0, 8, 3),
        **CHOSEN,
        "instruction": choice((INSTRUCTION,), INSTRUCTION, open=True),
    }
    reference = {"length": 100, "init": "uniform", "learning_rate": 3e-3, "k": 3, "selection": "similar",
                 "order": "similar_last", "template": "turns", "instruction": INSTRUCTION}
    peft_type = "PROMPT_TUNING"

    def vectors(self, point: Point) -> int:
        return int(point["length"])

    def refuses(self, model: PreTrainedModel, point: Point, context: Context) -> str | None:
        return super().refuses(model, point, context) or PromptMethod.refuses(self, model, point, context)

    def shape(self, tuned: Any, examples: Sequence[Example], encoded: Sequence[Encoded], point: Point, context: Context,
              *, training: bool) -> Sequence[Encoded]:
        rows = PromptMethod.shape(self, tuned, examples, encoded, point, context, training=training)
        return super().shape(tuned, examples, rows, point, context, training=training)

    def configuration(self, model: PreTrainedModel, point: Point, context: Context) -> PeftConfig:
        return PromptTuningConfig(task_type=PEFT_TASKS[context.task], num_virtual_tokens=self.vectors(point),
                                  **sizes(model), prompt_tuning_init=PromptTuningInit.RANDOM)

    def prepare(self, model: PreTrainedModel, point: Point, context: Context) -> nn.Module:
        tuned: Any = super().prepare(model, point, context)
        tuned.hard_prompt = self.written(point, context)
        soft: Any = next(p for p in tuned.parameters() if p.requires_grad)
        embedding: Any = model.get_input_embeddings()  # asked, not read: some scale what they hold
        with torch.no_grad():
            if point["init"] == "uniform":
                soft.uniform_(-SPREAD, SPREAD)
            else:
                soft.copy_(embedding(drawn_tokens(context, len(soft)).to(soft.device)))
        return tuned
