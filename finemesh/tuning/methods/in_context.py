"""In-context prompting: an instruction and k demonstrations before every row, nothing trained. Brown et al., arXiv
2005.14165; demonstrations that are similar to the row: Liu et al., arXiv 2101.06804."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from finemesh.hyperparameter import choice, integer
from finemesh.tuning.data.hard_prompt import HardPrompt
from finemesh.tuning.methods.base import Context, Point
from finemesh.tuning.methods.prompting import CHOSEN, INSTRUCTION, NONE, Prompting


class InContext(Prompting):
    name = "in_context"
    summary = "an instruction and demonstrations before the input, nothing trained"
    source = "Brown et al., arXiv 2005.14165"
    space = {
        "k": integer(0, 15, 4),  # 16 values: few enough for a mesh to learn that 0 switches the next ones off
        **CHOSEN,
        "instruction": choice((NONE, INSTRUCTION), NONE, open=True),
    }
    reference = {"k": 10, "selection": "random", "order": "similar_last", "template": "turns", "instruction": NONE}
    trains = False

    def prepare(self, model: PreTrainedModel, point: Point, context: Context) -> nn.Module:
        tuned: Any = model
        tuned.hard_prompt = self.written(point, context)
        return model

    def remove(self, tuned: Any) -> PreTrainedModel:
        del tuned.hard_prompt
        model: PreTrainedModel = tuned
        return model

    def save(self, tuned: Any, folder: Path, base_name: str) -> None:
        tuned.hard_prompt.save(folder)

    def load(self, model: PreTrainedModel, folder: Path) -> nn.Module:
        tuned: Any = model
        tuned.hard_prompt = HardPrompt.load(folder)
        return model.eval()
