"""Full fine-tuning: every weight, in float32 whatever the frozen models are kept in. Trains a copy, so the base stays.

Of a model that also sees, every weight that works on text."""

import copy
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from finemesh.hyperparameter import real
from finemesh.tuning.architecture import parameters_on_text
from finemesh.tuning.methods.base import Context, Method, Point, save_whole


class Full(Method):
    name = "full"
    summary = "every weight of the model"
    source = "Howard & Ruder, arXiv 1801.06146"
    space = {
        "learning_rate": real(1e-6, 1e-3, 2e-5, log=True),
        "weight_decay": real(0.0, 0.3, 0.0),
    }
    reference = {"learning_rate": 2e-5, "weight_decay": 0.0}
    mergeable = True
    gguf = True
    starts_at_base = True

    def trainable(self, model: PreTrainedModel, point: Point, context: Context) -> int:
        return sum(parameter.numel() for parameter in parameters_on_text(model).values())

    def prepare(self, model: PreTrainedModel, point: Point, context: Context) -> nn.Module:
        tuned: Any = copy.deepcopy(model).float()
        for parameter in parameters_on_text(tuned).values():
            parameter.requires_grad_(True)
        tuned.base = [model]  # in a list, so that it is not a submodule
        whole: nn.Module = tuned
        return whole

    def remove(self, tuned: Any) -> PreTrainedModel:
        base: PreTrainedModel = tuned.base[0]
        return base

    def save(self, tuned: nn.Module, folder: Path, base_name: str) -> None:
        save_whole(tuned, folder)

    def load(self, model: PreTrainedModel, folder: Path) -> nn.Module:
        return type(model).from_pretrained(folder, dtype=model.dtype).eval()
