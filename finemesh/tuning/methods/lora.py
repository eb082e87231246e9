"""LoRA: W x + scale B A x with W frozen. Hu et al., arXiv 2106.09685.

The scale is searched as alpha / rank, so that rank and scale are not confounded. rsLoRA (Kalajdzievski, arXiv 2312.03732) lets
it fall with the root of the rank: there it is alpha / rank at REFERENCE_RANK, where both agree, and that times
sqrt(REFERENCE_RANK / rank) at others. DoRA (Liu et al., arXiv 2402.09353) trains the lengths of W's rows beside.
"""

import re
from math import sqrt

from peft import LoraConfig, PeftConfig
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finemesh.hyperparameter import choice, integer, real
from finemesh.tuning.architecture import anywhere, architecture, text_part
from finemesh.tuning.heads import HEADS, new_layers
from finemesh.tuning.methods.base import PEFT_TASKS, AdapterMethod, Context, Point, new_parameters
from finemesh.tuning.methods.targets import linear_layers
from finemesh.tuning.models import TaskName

REFERENCE_RANK = 8
MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")  # PEFT refuses their out_proj


class Lora(AdapterMethod):
    name = "lora"
    summary = "low-rank increments of the linear layers"
    source = "Hu et al., arXiv 2106.09685"
    space = {
        "variant": choice(("lora", "rslora", "dora"), "lora"),
        "rank": integer(2, 128, REFERENCE_RANK, log=True),
        "alpha_over_rank": real(0.25, 16.0, 2.0, log=True),
        "dropout": real(0.0, 0.2, 0.0),
        "layers": choice(("all", "attention", "query_value", "mlp"), "all"),
        "learning_rate": real(1e-5, 2e-2, 2e-4, log=True),
    }
    reference = {"variant": "lora", "rank": REFERENCE_RANK, "alpha_over_rank": 2.0, "dropout": 0.0, "layers": "all",
                 "learning_rate": 2e-4}
    mergeable = True
    peft_type = "LORA"
    gguf = True
    starts_at_base = True

    def unfit(self, model: PreTrainedModel, task: TaskName) -> str | None:
        if not linear_layers(model, "all"):
            return f"lora finds no linear layers in {type(model).__name__}; full fits any model"
        return super().unfit(model, task)

    def refuses(self, model: PreTrainedModel, point: Point, context: Context) -> str | None:
        if point["layers"] != "all" and architecture(model) is None:
            return f"the {point['layers']} layers of {type(model).__name__} are not known; use layers: all"
        if point["variant"] == "dora" and point["layers"] in ("all", "mlp") and _joined_experts(model):
            return f"DoRA cannot tune the experts of {type(model).__name__}, which are one tensor; use variant: lora"
        if point["dropout"] >= 1:
            return f"dropout {point['dropout']:g} drops all, so that nothing trains; give less than 1"
        return None

    def trainable(self, model: PreTrainedModel, point: Point, context: Context) -> int:
        """Told from the shapes: PEFT takes half a second to put its modules in. Experts that are one tensor are its to find."""
        if _joined_experts(model):
            return super().trainable(model, point, context)
        targets, excluded = self._targets(model, point["layers"]), tuple(self._excluded(model))
        layers = [layer for name, layer in linear_layers(model, "all").items() if not name.endswith(excluded)
                  and (not isinstance(targets, str) or targets == "all-linear" or re.fullmatch(targets, name))]
        increments = int(point["rank"]) * sum(sum(layer.weight.shape) for layer in layers)
        lengths = sum(layer.weight.shape[isinstance(layer, Conv1D)] for layer in layers) if point["variant"] == "dora" else 0
        return increments + lengths + new_parameters(model, context)

    def configuration(self, model: PreTrainedModel, point: Point, context: Context) -> PeftConfig:
        rank, stabilised = int(point["rank"]), point["variant"] == "rslora"
        return LoraConfig(
            task_type=PEFT_TASKS[context.task], r=rank, use_rslora=stabilised, use_dora=point["variant"] == "dora",
            lora_alpha=point["alpha_over_rank"] * (sqrt(REFERENCE_RANK) if stabilised else rank),
            lora_dropout=point["dropout"], target_modules=self._targets(model, point["layers"]),
            fan_in_fan_out=model.config.model_type == "gpt2",
            exclude_modules=self._excluded(model) or None,
        )

    def _excluded(self, model: PreTrainedModel) -> list[str]:
        """What is trained whole, as the head is, and what PEFT refuses."""
        whole = [name for name in new_layers(model) if name not in HEADS]
        return whole + ["out_proj"] * (model.config.model_type in MAMBA)

    def _targets(self, model: PreTrainedModel, layers: str) -> str | list[str]:
        blocks = architecture(model)
        if layers == "all" or blocks is None:
            return sorted(linear_layers(model, "all")) if text_part(model) else "all-linear"
        return anywhere({"attention": blocks.attention, "query_value": blocks.query_value, "mlp": blocks.mlp}[layers])


def _joined_experts(model: PreTrainedModel) -> bool:
    """Whether the experts of a mixture are slices of one tensor."""
    return any(parameter.ndim > 2 for parameter in model.parameters())
