"""Which linear layers of a model are tuned: all but the output layer, or those of the attention."""

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finemesh.tuning.methods.head import HEADS

ATTENTION = {  # model type -> its attention projections; the others are taken from the names below
    "gpt2": ("attn.c_attn", "attn.c_proj"),
    "bert": ("query", "key", "value", "attention.output.dense"),
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def linear_layers(model: PreTrainedModel, which: str) -> dict[str, nn.Linear | Conv1D]:
    """By name, in the model's order; `which` is all or attention."""
    output = model.get_output_embeddings()
    heads = tuple(name for name in HEADS if hasattr(model, name))
    found = {name: module for name, module in model.named_modules()
             if isinstance(module, nn.Linear | Conv1D) and module is not output and name.split(".")[0] not in heads}
    if which == "all":
        return found
    attention = ATTENTION.get(model.config.model_type, PROJECTIONS)
    return {name: module for name, module in found.items() if name.endswith(attention)}
