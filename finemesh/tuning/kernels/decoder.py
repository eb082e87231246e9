"""The losses of a Llama-type model, computed from the modules and weights that transformers and PEFT have in place.

Nothing is patched or copied: this is a second way through the same modules, which knows that only losses are wanted. It is
taken where it computes what the model itself would (`way_through` says), and no other module of a model need know of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from peft import PeftModel, PeftType
from torch import nn

from finemesh.tuning.bottleneck import ParallelBottleneck
from finemesh.tuning.data.batches import Batch
from finemesh.tuning.kernels.attention import causal_attention
from finemesh.tuning.kernels.compiled import thread_safe
from finemesh.tuning.kernels.head import cross_entropy
from finemesh.tuning.kernels.packing import Rows, common_start, rows_of
from finemesh.tuning.kernels.pointwise import rms_norm, swiglu
from finemesh.tuning.kernels.projections import project
from finemesh.tuning.kernels.vocabulary import VocabularyHead

SOFT = (PeftType.PROMPT_TUNING, PeftType.P_TUNING, PeftType.PREFIX_TUNING)
FAMILIES = ("Llama", "Mistral", "Qwen2")  # decoders that differ in the biases of their projections only


@dataclass(frozen=True)
class Way:
    """A causal model and, for soft prompts and prefixes, PEFT's wrapper, which holds the trained vectors."""

    model: Any
    wrapper: Any | None

    def vectors(self) -> torch.Tensor | None:
        """(virtual, width), before every row."""
        if self.wrapper is None or self._is_prefix:
            return None
        vectors: torch.Tensor = self.wrapper.get_prompt(batch_size=1)[0]
        return vectors

    def past(self, dtype: torch.dtype) -> Sequence[torch.Tensor | None]:
        """(2, virtual, key heads * head width) of each layer: keys and values before those of every row."""
        if self.wrapper is None or not self._is_prefix:
            return [None] * len(self.model.model.layers)
        name, config = self.wrapper.active_adapter, self.wrapper.active_peft_config
        encoder = self.wrapper.prompt_encoder[name]
        tokens = torch.arange(config.num_virtual_tokens)[None]
        flat = encoder.embedding.weight if config.inference_mode else encoder(tokens)[0]
        both = flat.to(dtype).view(len(flat), config.num_layers, 2, -1)
        return both.permute(1, 2, 0, 3).contiguous().unbind()

    @property
    def _is_prefix(self) -> bool:
        return self.wrapper is not None and self.wrapper.active_peft_config.peft_type == PeftType.PREFIX_TUNING


def way_through(model: nn.Module, time: int) -> Way | None:
    """None where the model must compute its losses itself for rows of `time` positions."""
    wrapper = None
    causal: Any = model
    if isinstance(model, PeftModel):
        causal = model.get_base_model()
        if model.active_peft_config.is_prompt_learning:
            if model.active_peft_config.peft_type not in SOFT:
                return None
            wrapper = model
            time += model.active_peft_config.num_virtual_tokens
    family = type(causal).__name__.removesuffix("ForCausalLM")
    if family not in FAMILIES or not type(causal).__module__.startswith("transformers.models."):
        return None
    return Way(causal, wrapper) if _as_built(causal, family, time) else None


def runs_in_threads(model: nn.Module, time: int) -> bool:
    """Whether parts of a batch, with rows of at most `time` positions, may be computed at the same time.

    They may on the way here, which changes no module, unless numbers are drawn: whose turn it is would decide them.
    """
    return (torch.get_num_threads() > 1 and way_through(model, time) is not None and not _drops(model)
            and all(parameter.device.type == "cpu" for parameter in model.parameters()) and thread_safe())


def common_share(model: nn.Module, rows: Sequence[Sequence[int]]) -> float:
    """Of a batch's packed tokens, the share of those that all rows begin with: trained vectors, and equal tokens."""
    config: Any = model.active_peft_config if isinstance(model, PeftModel) else None
    soft = config is not None and config.peft_type in (PeftType.PROMPT_TUNING, PeftType.P_TUNING)
    same = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False)))
    common = same + (int(config.num_virtual_tokens) if soft else 0)
    return common / (common + sum(len(row) - same for row in rows))


def _as_built(causal: Any, family: str, time: int) -> bool:
    """Whether every module on the way is the family's own, on the CPU (or without weights), without hooks."""
    config, decoder = causal.config, causal.model
    window = config.sliding_window if getattr(config, "use_sliding_window", family == "Mistral") else None
    if config.hidden_act != "silu" or config.attention_dropout or (window is not None and time > window):
        return False
    if type(decoder).__name__ != family + "Model" or decoder.gradient_checkpointing:
        return False
    head = causal.get_output_embeddings()
    head = head.base if type(head) is VocabularyHead else head
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    if head.weight.device.type not in ("cpu", "meta"):
        return False
    for layer in decoder.layers:
        kinds = (layer, layer.self_attn, _own(layer.mlp), layer.input_layernorm, layer.post_attention_layernorm)
        names = ("DecoderLayer", "Attention", "MLP", "RMSNorm", "RMSNorm")
        if any(type(module).__name__ != family + name for module, name in zip(kinds, names, strict=True)):
            return False
    return not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in causal.modules())


def scored_losses(model: nn.Module, batch: Batch) -> torch.Tensor | None:
    """The losses of the batch's scored tokens, (scored,) float32 nats in the order of `batch.scored`.

    None where the model must be asked itself.
    """
    way, states = way_through(model, batch.input_ids.size(1)), scored_states(model, batch)
    if way is None or states is None:
        return None
    head, targets = way.model.get_output_embeddings(), batch.input_ids[batch.scored]
    with torch.autocast("cpu", enabled=False):
        if isinstance(head, VocabularyHead):
            return head.losses(states, targets, head.others(states, targets))
        return cross_entropy(states, head.weight, targets)


def scored_states(model: nn.Module, batch: Batch) -> torch.Tensor | None:
    """What the head reads to predict the scored tokens: (scored, width), in the type that autocast asks for or the model's.

    None where the model must be asked itself.
    """
    way = way_through(model, batch.input_ids.size(1))
    if way is None or batch.input_ids.device.type != "cpu":
        return None
    vectors = way.vectors()
    virtual = 0 if vectors is None else len(vectors)
    lengths = _looked_at(batch)
    shared = 0 if _drops(way.model) else common_start(batch.input_ids, lengths)
    rows = rows_of(lengths + virtual, int(lengths.max()) + virtual, virtual + shared)
    places = rows.pack[virtual:]
    row, position = places // rows.time, places % rows.time - virtual
    x = way.model.get_input_embeddings()(batch.input_ids[row, position])
    if vectors is not None:
        x = torch.cat([vectors.to(x.dtype), x])
    wanted = batch.scored.nonzero()
    before = rows.unpack.view(rows.batch, rows.time)[wanted[:, 0], wanted[:, 1] + virtual - 1]
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    with torch.autocast("cpu", enabled=False):
        return _states(way.model.model, x, rows, before, dtype, way.past(dtype))


def _looked_at(batch: Batch) -> torch.Tensor:
    """(batch,) the tokens of each row on which its scored ones depend: those before the last; one where none is scored."""
    last: torch.Tensor = (batch.scored * torch.arange(batch.scored.size(1))).amax(1).clamp(min=1)
    return last


def _drops(model: nn.Module) -> bool:
    """Whether dropout is on: then no two rows share a state."""
    return any(module.training and (module.p if isinstance(module, nn.Dropout) else module.dropout) > 0
               for module in model.modules() if isinstance(module, nn.Dropout | nn.RNNBase))


def _states(decoder: Any, x: torch.Tensor, rows: Rows, wanted: torch.Tensor, dtype: torch.dtype,
            past: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """The last hidden states of the `wanted` ones of the packed tokens, from their embeddings (tokens, width)."""
    first = 0 if past[0] is None else past[0].size(1)
    cos, sin = decoder.rotary_emb(x[None], position_ids=torch.arange(first, first + rows.time)[None])
    half = cos.size(-1) // 2
    cos, sin = cos[0, :, :half].to(dtype), sin[0, :, :half].to(dtype)  # the halves are equal
    last = len(decoder.layers) - 1
    for i, layer in enumerate(decoder.layers):
        attention, mlp = layer.self_attn, _own(layer.mlp)
        y = _normed(layer.input_layernorm, x, dtype)
        q, k, v = project(y, [attention.q_proj, attention.k_proj, attention.v_proj])
        y = causal_attention(q, k, v, cos, sin, rows, attention.head_dim, attention.scaling, past[i])
        if i == last:  # of the last layer nothing else is looked at
            x, y = x.index_select(0, wanted), y.index_select(0, wanted)
        (x,) = project(y, [attention.o_proj], x)
        y = _normed(layer.post_attention_layernorm, x, dtype)
        if (added := _beside(layer.mlp, y)) is not None:
            x = x + added
        gate, up = project(y, [mlp.gate_proj, mlp.up_proj])
        (x,) = project(swiglu(gate, up), [mlp.down_proj], x)
    return _normed(decoder.norm, x, dtype)


def _own(block: Any) -> Any:
    """The feed-forward block itself, where there are adapters beside it."""
    return block.base_layer if type(block) is ParallelBottleneck else block


def _beside(block: Any, y: torch.Tensor) -> torch.Tensor | None:
    """What adapters add to the block's output for its input."""
    if type(block) is not ParallelBottleneck:
        return None
    with torch.autocast("cpu", torch.bfloat16, enabled=y.dtype == torch.bfloat16):
        added: torch.Tensor | None = block.beside(y)
    return added


def _normed(norm: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return rms_norm(x, norm.weight, norm.variance_epsilon, dtype)
