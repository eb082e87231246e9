"""Where the blocks of a transformer lie: patterns of the names of its modules, by family."""

import re
from dataclasses import astuple, dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from finemesh.tuning.heads import new_layers


@dataclass(frozen=True)
class Architecture:
    """Each pattern names what every layer has, as the end of a module's dotted name."""

    attention: str  # the linear layers of the attention block
    query_value: str  # those of queries and values, or the one in which they are joined
    mlp: str  # the linear layers of the feed-forward block
    attention_output: str  # the last linear layer of the attention block
    mlp_output: str
    mlp_block: str  # the module that is given the block's input, alone or beside the inner states (BERT)

    def within(self, part: str) -> "Architecture":
        """Of the modules whose names begin with `part`."""
        return Architecture(*(rf"{re.escape(part)}(.*\.)?{pattern}" for pattern in astuple(self))) if part else self


LLAMA = Architecture(r"self_attn\.(q|k|v|qkv|o)_proj", r"self_attn\.(q|v|qkv)_proj", r"mlp\.(gate|up|gate_up|down)_proj",
                     r"self_attn\.o_proj", r"mlp\.down_proj", r"mlp")
GPT2 = Architecture(r"h\.\d+\.attn\.c_(attn|proj)", r"h\.\d+\.attn\.c_attn", r"h\.\d+\.mlp\.c_(fc|proj)",
                    r"h\.\d+\.attn\.c_proj", r"h\.\d+\.mlp\.c_proj", r"h\.\d+\.mlp")
BERT = Architecture(r"attention\.(self\.((query|key|value)(_proj)?|in_proj)|output\.dense)",  # _proj and in_proj: DeBERTa's
                    r"attention\.self\.((query|value)(_proj)?|in_proj)",
                    r"layer\.\d+\.(intermediate|output)\.dense", r"layer\.\d+\.attention\.output\.dense",
                    r"layer\.\d+\.output\.dense", r"layer\.\d+\.output")
FAMILIES = (LLAMA, GPT2, BERT)


def architecture(model: nn.Module) -> Architecture | None:
    """The family whose blocks every layer of the model has; None where there is no such family."""
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None) if isinstance(model, PreTrainedModel) else None
    part = text_part(model)
    names = {name.replace(".base_layer", "") for name, _ in model.named_modules()}  # adapters of PEFT may be in place
    for family in (each.within(part) for each in FAMILIES):
        outputs = (family.attention_output, family.mlp_output, family.mlp_block)
        if all(sum(bool(re.fullmatch(anywhere(pattern), name)) for name in names) == layers for pattern in outputs):
            return family
    return None


def text_part(model: nn.Module) -> str:
    """What the names of the modules begin with that work on text; empty where there are no others (they see, or hear)."""
    if not isinstance(model, PreTrainedModel) or model.config.get_text_config() is model.config:
        return ""
    decoder = model.get_decoder()
    return next(f"{name}." for name, module in model.named_modules() if module is decoder)


def parameters_on_text(model: Any) -> dict[str, nn.Parameter]:
    """By name: all, but of a model that also sees those of its text part and its heads alone; no others get a gradient."""
    part, output = text_part(model), model.get_output_embeddings()
    heads = [*new_layers(model), *(name for name, module in model.named_modules() if module is output)]
    return {name: parameter for name, parameter in model.named_parameters()
            if name.startswith((part, *(f"{head}." for head in heads)))}


def anywhere(*patterns: str) -> str:
    """One pattern for whole dotted names that end as one of `patterns` says."""
    return rf"(.*\.)?({'|'.join(patterns)})"
