"""Bottleneck adapters: h + scale * W_up f(W_down h), three variants of where. Houlsby et al., arXiv 1902.00751.

`reduction` is the model's width divided by the bottleneck's. finemesh/tuning/bottleneck.py makes them a method of PEFT.
"""

import re

from peft import PeftConfig
from transformers import PreTrainedModel

from finemesh.hyperparameter import choice, integer, real
from finemesh.tuning.architecture import architecture
from finemesh.tuning.bottleneck import BOTTLENECK, VARIANTS, BottleneckConfig, places
from finemesh.tuning.methods.base import PEFT_TASKS, AdapterMethod, Context, Point, new_parameters
from finemesh.tuning.methods.targets import linear_layers
from finemesh.tuning.models import TaskName


class Bottleneck(AdapterMethod):
    name = "bottleneck"
    summary = "small two-layer networks in every layer"
    source = "Houlsby et al., arXiv 1902.00751"
    space = {
        "variant": choice(VARIANTS, "houlsby"),
        "reduction": integer(2, 128, 16, log=True),
        "nonlinearity": choice(("relu", "gelu", "silu"), "gelu"),
        "scale": real(0.25, 16.0, 1.0, log=True),
        "learning_rate": real(1e-5, 2e-2, 3e-4, log=True),
    }
    reference = {"variant": "houlsby", "reduction": 16, "nonlinearity": "gelu", "scale": 1.0, "learning_rate": 3e-4}
    peft_type = BOTTLENECK
    plug_in = True
    starts_at_base = True

    def unfit(self, model: PreTrainedModel, task: TaskName) -> str | None:
        if architecture(model) is None or not linear_layers(model, "all"):
            return (f"the attention and feed-forward blocks of {type(model).__name__} are not known, so adapters find no "
                    "place; lora takes any linear layers, full fits any model")
        return super().unfit(model, task)

    def refuses(self, model: PreTrainedModel, point: Point, context: Context) -> str | None:
        width = model.config.get_text_config().hidden_size
        if point["reduction"] > width:
            return f"reduction {point['reduction']} leaves nothing of the model's width {width}"
        return None

    def trainable(self, model: PreTrainedModel, point: Point, context: Context) -> int:
        """Told from the shapes, as PEFT takes long to put its modules in."""
        blocks, width = architecture(model), model.config.get_text_config().hidden_size
        assert blocks is not None
        pattern = places(blocks, point["variant"])
        count = sum(bool(re.fullmatch(pattern, name)) for name, _ in model.named_modules())
        inner = BottleneckConfig(reduction=point["reduction"]).width(width)
        return count * (2 * width * inner + width + inner) + new_parameters(model, context)

    def configuration(self, model: PreTrainedModel, point: Point, context: Context) -> PeftConfig:
        return BottleneckConfig(
            task_type=PEFT_TASKS[context.task], variant=point["variant"], reduction=point["reduction"],
            nonlinearity=point["nonlinearity"], scale=point["scale"],
        )
