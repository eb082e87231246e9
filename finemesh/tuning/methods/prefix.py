"""Prefix tuning: trained keys and values before those of every layer, P = MLP(E). Li & Liang, arXiv 2101.00190.

The MLP is dropped on saving: what is saved is P itself. Started from real text, P = text + MLP(E) and the MLP gives zero
at first: the untuned prefix is then exactly what the frozen model remembers of that text.
"""

import inspect
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PrefixEncoder, PrefixTuningConfig
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from finemesh.hyperparameter import choice, integer, real
from finemesh.tuning.methods.base import PEFT_TASKS, Context, Point, PromptMethod
from finemesh.tuning.methods.prompt import text_tokens
from finemesh.tuning.models import TaskName


class PrefixMethod(PromptMethod):
    """Prefixes of each layer, of `length` positions, from `init`: text or random. By an MLP where the point says so."""

    peft_type = "PREFIX_TUNING"

    def unfit(self, model: PreTrainedModel, task: TaskName) -> str | None:
        if not any("past_key_values" in inspect.signature(kind.forward).parameters
                   for kind in (type(model), type(model.base_model))):
            return (f"the layers of {type(model).__name__} take no keys and values from outside; "
                    "prompt and p_tuning put vectors before the input instead")
        return super().unfit(model, task)

    def configuration(self, model: PreTrainedModel, point: Point, context: Context) -> PeftConfig:
        hidden: Any = point.get("hidden_size")
        return PrefixTuningConfig(
            task_type=PEFT_TASKS[context.task], num_virtual_tokens=int(point["length"]),
            prefix_projection=point.get("reparameterization") == "mlp", encoder_hidden_size=hidden,
            init_weights="zero" if point["init"] == "text" else None, **_heads(model.config),
        )

    def prepare(self, model: PreTrainedModel, point: Point, context: Context) -> nn.Module:
        text = None
        if point["init"] == "text":
            text = key_values(model, text_tokens(context, int(point["length"])))
        tuned: Any = super().prepare(model, point, context)
        name = tuned.active_adapter
        tuned.prompt_encoder[name] = _Encoder(tuned.peft_config[name], text).to(model.device)
        made: nn.Module = tuned
        return made

    def save(self, tuned: nn.Module, folder: Any, base_name: str) -> None:
        assert isinstance(tuned, PeftModel)
        configuration: Any = tuned.active_peft_config
        configuration.prefix_projection, configuration.init_weights = False, None  # PEFT saves the vectors, computed
        super().save(tuned, folder, base_name)


def _heads(config: Any) -> dict[str, Any]:
    """What PEFT does not know: MPT's word for heads; and of Falcon that it may have one head of keys and values for all
    queries, which its configuration does not say by num_key_value_heads."""
    if config.model_type != "falcon" or config.new_decoder_architecture or not config.multi_query:
        return {"num_attention_heads": config.get_text_config().num_attention_heads}
    return {"token_dim": config.head_dim, "num_attention_heads": 1}


class _Encoder(PrefixEncoder):
    """PEFT's, plus what the prefix starts from; once for all rows of a batch, and in float32 whatever else is not."""

    def __init__(self, config: PeftConfig, text: torch.Tensor | None) -> None:
        super().__init__(config)
        if text is not None and not self.prefix_projection:
            self.embedding.weight.data.copy_(text)
            text = None
        self.start: Any
        self.register_buffer("start", text, persistent=False)

    def forward(self, prefix: torch.Tensor) -> torch.Tensor:
        """(batch, length) -> (batch, length, layers * 2 * width)"""
        with torch.autocast(prefix.device.type, enabled=False):
            vectors: torch.Tensor = super().forward(prefix[:1])
            vectors = vectors if self.start is None else vectors + self.start
        return vectors.expand(len(prefix), -1, -1)


@torch.no_grad()
def key_values(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """(length, layers * 2 * width) float32: the keys and values of each layer after the frozen model has read the tokens.

    In PEFT's order: of a position layer by layer, the keys of all heads, then the values.
    """
    cache: Any = DynamicCache()
    backbone: Any = model.base_model
    backbone(input_ids=tokens[None].to(model.device), past_key_values=cache)
    both = [heads[0].transpose(0, 1) for layer in cache.layers for heads in (layer.keys, layer.values)]
    return torch.stack(both, 1).flatten(1).float()


class Prefix(PrefixMethod):
    name = "prefix"
    summary = "trained keys and values before each layer's, by an MLP"
    source = "Li & Liang, arXiv 2101.00190"
    space = {
        "length": integer(1, 200, 10, log=True),
        "init": choice(("text", "random"), "text"),
        "reparameterization": choice(("mlp", "none"), "mlp"),
        "hidden_size": integer(16, 1024, 512, log=True, when=("reparameterization", ("mlp",))),
        "learning_rate": real(1e-6, 3e-1, 5e-3, log=True),
    }
    reference = {"length": 10, "init": "random", "reparameterization": "mlp", "hidden_size": 512, "learning_rate": 5e-5}
