"""Which linear layers of a model are tuned: all that work on text but the output layer, or those of the attention."""

import re

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finemesh.tuning.architecture import anywhere, architecture, text_part
from finemesh.tuning.heads import new_layers


def linear_layers(model: PreTrainedModel, which: str) -> dict[str, nn.Linear | Conv1D]:
    """By name, in the model's order; `which` is all or attention. None of them where the attention is not known."""
    output = model.get_output_embeddings()
    heads = tuple(f"{name}." for name in new_layers(model))
    part = text_part(model)
    found = {name: module for name, module in model.named_modules() if name.startswith(part)
             and isinstance(module, nn.Linear | Conv1D) and module is not output and not f"{name}.".startswith(heads)}
    if which == "all":
        return found
    blocks = architecture(model)
    return {} if blocks is None else {
        name: module for name, module in found.items() if re.fullmatch(anywhere(blocks.attention), name)}
