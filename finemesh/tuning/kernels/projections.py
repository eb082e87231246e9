"""Linear layers that read the same input, with LoRA or sparse increments, as one step of autograd.

y_i = x W_i^T + b_i + (x A_i^T) (s_i B_i)^T + residual
dx = sum_i dy_i W_i + du A,  du_i = dy_i s_i B_i,  dA = du^T x,  dB_i = s_i dy_i^T u_i,  u = x A^T with A all A_i stacked.
A sparse increment is folded into W_i already; of dW_i = dy_i^T x only its entries are computed.

What is frozen costs nothing in the backward pass; casts are of weights that are trained, never of activations. Within
in_int8, x W_i^T and dy_i W_i of frozen weights are done in 8 bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from torch.autograd import Function

from finemesh.tuning.kernels.int8 import Rounded, is_int8, rounded
from finemesh.tuning.kernels.sampled import Entries, Tokens

TENSORS = 5  # of a layer: W, b, A, B, delta


@dataclass(frozen=True)
class LowRank:
    """A LoRA adapter of a layer."""

    a: nn.Parameter  # (rank, in)
    b: nn.Parameter  # (out, rank)
    scale: float
    dropout: float


@dataclass(frozen=True)
class Sparse:
    """A sparse increment of a layer; `transposed`: its entries are of W^T, which is what is stored."""

    delta: nn.Parameter
    entries: Entries
    transposed: bool

    def gradient(self, dy: Tokens, x: Tokens) -> torch.Tensor:
        return self.entries.gradient(x, dy) if self.transposed else self.entries.gradient(dy, x)


@dataclass(frozen=True)
class Parts:
    """What a layer computes with; the weight is (out, in)."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    lora: LowRank | None = None
    sparse: Sparse | None = None

    @property
    def tensors(self) -> list[torch.Tensor | None]:
        low = (self.lora.a, self.lora.b) if self.lora else (None, None)
        return [self.weight, self.bias, *low, self.sparse.delta if self.sparse else None]


@runtime_checkable
class KnowsItsParts(Protocol):
    """A layer of ours that computes with Parts."""

    def parts(self) -> Parts: ...


def project(x: torch.Tensor, layers: Sequence[nn.Module], residual: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Each layer's output for x (tokens, in), in x's type; plus `residual` where there is a single layer.

    Plain, LoRA and sparse linear layers are computed together; any other module is simply called.
    """
    parts = [_parts(layer) for layer in layers]
    together = not any(part is None or (part.lora and part.lora.dropout) for part in parts)
    fused = residual if together and residual is not None and residual.dtype == x.dtype else None
    outputs = _together(x, parts, fused) if together else [_one(x, layer) for layer in layers]
    return outputs if residual is None or fused is not None else [outputs[0] + residual]


def _together(x: torch.Tensor, parts: Sequence[Parts | None], residual: torch.Tensor | None) -> list[torch.Tensor]:
    tensors = [tensor for part in parts if part for tensor in part.tensors]
    return list(_Projections.apply(parts, x, residual, *tensors))


def _parts(layer: nn.Module) -> Parts | None:
    """None where it is not a plain linear layer with at most one plain LoRA adapter or a sparse increment."""
    if type(layer) is nn.Linear:
        return Parts(layer.weight, layer.bias)
    if isinstance(layer, KnowsItsParts):
        return layer.parts()
    if type(layer) is not LoraLinear or type(layer.base_layer) is not nn.Linear or layer.merged or layer.fan_in_fan_out:
        return None
    active = [] if layer.disable_adapters else [name for name in layer.active_adapters if name in layer.lora_A]
    weight, bias = layer.base_layer.weight, layer.base_layer.bias
    if not active:
        return Parts(weight, bias)
    a, b = layer.lora_A[active[0]], layer.lora_B[active[0]]
    if len(active) > 1 or active[0] in layer.lora_variant or a.bias is not None or b.bias is not None:
        return None
    dropout = layer.lora_dropout[active[0]]
    rate = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    return Parts(weight, bias, LowRank(a.weight, b.weight, layer.scaling[active[0]], rate))


def _one(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """A layer with dropout before its increment, or one of another kind."""
    parts = _parts(layer)
    if parts is None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16):
            y: torch.Tensor = layer(x)
        return y.to(x.dtype)
    (base,) = _together(x, [replace(parts, lora=None)], None)
    if parts.lora is None:
        return base
    low = F.dropout(x, parts.lora.dropout) @ parts.lora.a.to(x.dtype).t()
    return torch.addmm(base, low, (parts.lora.b * parts.lora.scale).to(x.dtype).t())


def _forward(x: torch.Tensor | Rounded, weight: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """x W^T + residual."""
    if isinstance(x, Rounded):
        eight = rounded(weight)
        return x.product(eight.values.t(), eight.scale, residual, weight.dtype)
    return x @ weight.t() if residual is None else torch.addmm(residual, x, weight.t())


def _backward(dy: torch.Tensor, weight: torch.Tensor, dx: torch.Tensor | None, *, int8: bool) -> torch.Tensor:
    """dx + dy W; dx may be written over."""
    if int8:
        eight = rounded(weight)
        return rounded(dy, eight.scale).product(eight.values, torch.ones(weight.size(1)), dx, dy.dtype)
    return dy @ weight if dx is None else dx.addmm_(dy, weight)


class _Projections(Function):
    """Arguments: the layers, x, the residual or None, then each layer's tensors W_i, b_i, A_i, B_i, delta_i."""

    @staticmethod
    def forward(ctx: Any, parts: Sequence[Parts], x: torch.Tensor, residual: torch.Tensor | None,
                *tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        weights = [part.weight.to(x.dtype) for part in parts]
        int8 = is_int8() and all(part.sparse is None and not part.weight.requires_grad for part in parts)
        read = rounded(x) if int8 else x
        downs: list[torch.Tensor] = [part.lora.a for part in parts if part.lora]
        ups = [(part.lora.b * part.lora.scale).to(x.dtype) if part.lora else None for part in parts]
        down = torch.cat(downs).to(x.dtype) if downs else None  # (sum of ranks, in)
        low = None if down is None else x @ down.t()
        outputs = []
        at = 0
        for part, weight, up in zip(parts, weights, ups, strict=True):
            y = _forward(read, weight, residual)
            if part.bias is not None:
                y += part.bias.to(x.dtype)
            if up is not None and low is not None:
                y.addmm_(low[:, at:at + up.size(1)], up.t())
                at += up.size(1)
            outputs.append(y)
        ctx.save_for_backward(x, down, low, *weights, *ups)
        ctx.parts, ctx.int8 = parts, int8
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *dys: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, down, low, *rest = ctx.saved_tensors
        count = len(dys)
        weights, ups = rest[:count], rest[count:]
        _, needs_x, needs_residual, *needs = ctx.needs_input_grad
        shared = Tokens(x)
        gradients: list[torch.Tensor | None] = []
        d_lows: list[torch.Tensor] = []
        dx: torch.Tensor | None = None
        at = 0
        for i, (part, dy, weight, up) in enumerate(zip(ctx.parts, dys, weights, ups, strict=True)):
            needs_weight, needs_bias, _, needs_up, needs_delta = needs[TENSORS * i:TENSORS * (i + 1)]
            d_up = None
            if up is not None:
                d_lows.append(dy @ up)
                if needs_up:
                    d_up = (low[:, at:at + up.size(1)].t() @ dy).t().float().mul_(part.lora.scale)
                at += up.size(1)
            if needs_x:
                dx = _backward(dy, weight, dx, int8=ctx.int8)
            d_delta = part.sparse.gradient(Tokens(dy), shared) if needs_delta else None
            gradients += [dy.t() @ x if needs_weight else None, dy.sum(0) if needs_bias else None, None, d_up, d_delta]
        if d_lows:
            d_low = torch.cat(d_lows, 1)
            if dx is not None:
                dx.addmm_(d_low, down)
            d_downs = iter((d_low.t() @ x).float().split([part.size(1) for part in d_lows]))
            for i, up in enumerate(ups):
                gradients[TENSORS * i + 2] = next(d_downs) if up is not None else None
        return None, dx, dys[0] if needs_residual else None, *gradients
