"""The layers that a classifier or regressor has beside its checkpoint's: its head, and what else must be drawn."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

HEADS = ("classifier", "score")  # what transformers calls the new layer of a sequence classifier


def load_with_head(location: str, labels: Sequence[str], **options: Any) -> PreTrainedModel:
    """A classifier of these labels, a regressor where there are none. Draws from torch's global generator.

    A head of another size, or of other labels, is drawn anew. What the checkpoint lacks is named in `drawn_layers`.
    """
    said = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # it would list what is drawn as a thing to worry about
    try:
        model, told = AutoModelForSequenceClassification.from_pretrained(
            location, ignore_mismatched_sizes=True, output_loading_info=True, **head_of(labels), **options)
    finally:
        transformers.utils.logging.set_verbosity(said)
    model.drawn_layers = _holding(model, {*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])})
    _follow_labels(model, AutoConfig.from_pretrained(location), labels)
    loaded: PreTrainedModel = model
    return loaded


def head_of(labels: Sequence[str]) -> dict[str, Any]:
    """What a configuration says of the head."""
    if not labels:
        return {"num_labels": 1, "problem_type": "regression"}
    names = dict(enumerate(labels))
    return {"num_labels": len(labels), "id2label": names, "label2id": {name: i for i, name in names.items()}}


def new_layers(model: nn.Module) -> list[str]:
    """What transformers adds to a classifier or regressor and draws anew each time: the head, any layer before it of a like
    name, such as DistilBERT's pre_classifier, and what else the checkpoint lacks, such as DeBERTa's pooler. All are trained."""
    heads = [name for name, _ in model.named_children() if name.endswith(HEADS)]
    drawn: list[str] = getattr(model, "drawn_layers", [])
    return heads + [name for name in drawn if name.split(".")[0] not in heads]


def _holding(model: nn.Module, parameters: set[str], prefix: str = "") -> list[str]:
    """The fewest modules that hold these parameters: whole ones where all of theirs are among them."""
    found = []
    for name, child in model.named_children():
        own = [f"{prefix}{name}.{parameter}" for parameter, _ in child.named_parameters()]
        among = parameters.intersection(own)
        if among and (len(among) == len(own) or not list(child.children())):
            found.append(prefix + name)
        elif among:
            found += _holding(child, parameters, f"{prefix}{name}.")
    return found


@torch.no_grad()
def _follow_labels(model: Any, before: Any, labels: Sequence[str]) -> None:
    """A checkpoint's own head has its labels in its own order: put it in ours, or draw it where they are others.

    Where either side only counts them (LABEL_0, or 0), their order is the same.
    """
    names = [str(before.id2label[i]) for i in range(before.num_labels)]
    counted = [[f"{word}{i}" for i in range(len(names))] for word in ("LABEL_", "")]
    if len(names) != len(labels) or names in counted or list(labels) in counted:
        return
    output = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == len(labels)][-1]
    if set(names) == set(labels):
        order = torch.tensor([names.index(label) for label in labels])
        for parameter in output.parameters():
            parameter.copy_(parameter[order])
        return
    output.weight.normal_(0.0, getattr(model.config, "initializer_range", 0.02))
    if output.bias is not None:
        output.bias.zero_()
