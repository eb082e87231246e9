"""Linear layers that read the same input, with LoRA increments, as one step of autograd.

y_i = x W_i^T + b_i + (x A_i^T) (s_i B_i)^T + residual
dx = sum_i dy_i W_i + du A,  du_i = dy_i s_i B_i,  dA = du^T x,  dB_i = s_i dy_i^T u_i,  u = x A^T with A all A_i stacked.

What is frozen costs nothing in the backward pass; casts are of weights that are trained, never of activations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from torch.autograd import Function


@dataclass(frozen=True)
class _Increment:
    """A LoRA adapter of a layer."""

    a: nn.Parameter  # (rank, in)
    b: nn.Parameter  # (out, rank)
    scale: float
    dropout: float


_Parts = tuple[nn.Linear, _Increment | None]


def project(x: torch.Tensor, layers: Sequence[nn.Module], residual: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Each layer's output for x (tokens, in), in x's type; plus `residual` where there is a single layer.

    Plain and LoRA linear layers are computed together; any other module is simply called.
    """
    parts = [_parts(layer) for layer in layers]
    together = not any(part is None or (part[1] and part[1].dropout) for part in parts)
    fused = residual if together and residual is not None and residual.dtype == x.dtype else None
    outputs = _together(x, parts, fused) if together else [_one(x, layer) for layer in layers]
    return outputs if residual is None or fused is not None else [outputs[0] + residual]


def _together(x: torch.Tensor, parts: Sequence[_Parts | None], residual: torch.Tensor | None) -> list[torch.Tensor]:
    tensors: list[torch.Tensor | None] = [residual]
    for linear, increment in filter(None, parts):
        tensors += [linear.weight, linear.bias, *((increment.a, increment.b) if increment else (None, None))]
    scales = tuple(part[1].scale if part and part[1] else 0.0 for part in parts)
    return list(_Projections.apply(scales, x, *tensors))


def _parts(layer: nn.Module) -> _Parts | None:
    """What a layer computes with; None where it is not a plain linear layer with at most one plain LoRA adapter."""
    if type(layer) is nn.Linear:
        return layer, None
    if type(layer) is not LoraLinear or type(layer.base_layer) is not nn.Linear or layer.merged or layer.fan_in_fan_out:
        return None
    active = [] if layer.disable_adapters else [name for name in layer.active_adapters if name in layer.lora_A]
    if not active:
        return layer.base_layer, None
    a, b = layer.lora_A[active[0]], layer.lora_B[active[0]]
    if len(active) > 1 or active[0] in layer.lora_variant or a.bias is not None or b.bias is not None:
        return None
    dropout = layer.lora_dropout[active[0]]
    rate = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    return layer.base_layer, _Increment(a.weight, b.weight, layer.scaling[active[0]], rate)


def _one(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """A layer with dropout before its increment, or one of another kind."""
    parts = _parts(layer)
    if parts is None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16):
            y: torch.Tensor = layer(x)
        return y.to(x.dtype)
    linear, increment = parts
    (base,) = _together(x, [(linear, None)], None)
    if increment is None:
        return base
    low = F.dropout(x, increment.dropout) @ increment.a.to(x.dtype).t()
    return torch.addmm(base, low, (increment.b * increment.scale).to(x.dtype).t())


class _Projections(Function):
    """Arguments: the scales s_i, x, the residual or None, then W_i, b_i, A_i, B_i of each layer, each but W_i or None."""

    @staticmethod
    def forward(ctx: Any, scales: tuple[float, ...], x: torch.Tensor, residual: torch.Tensor | None,
                *tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        weights = [w.to(x.dtype) for w in tensors[0::4] if w is not None]
        downs = [a for a in tensors[2::4] if a is not None]
        ups = [None if b is None else (b * s).to(x.dtype) for b, s in zip(tensors[3::4], scales, strict=True)]
        down = torch.cat(downs).to(x.dtype) if downs else None  # (sum of ranks, in)
        low = None if down is None else x @ down.t()
        outputs = []
        at = 0
        for weight, bias, up in zip(weights, tensors[1::4], ups, strict=True):
            y = x @ weight.t() if residual is None else torch.addmm(residual, x, weight.t())
            if bias is not None:
                y += bias.to(x.dtype)
            if up is not None and low is not None:
                y.addmm_(low[:, at:at + up.size(1)], up.t())
                at += up.size(1)
            outputs.append(y)
        ctx.save_for_backward(x, down, low, *weights, *ups)
        ctx.scales = scales
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *dys: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, down, low, *rest = ctx.saved_tensors
        count = len(dys)
        weights, ups = rest[:count], rest[count:]
        _, needs_x, needs_residual, *needs = ctx.needs_input_grad
        gradients: list[torch.Tensor | None] = []
        d_lows: list[torch.Tensor] = []
        dx: torch.Tensor | None = None
        at = 0
        for i, (dy, weight, up) in enumerate(zip(dys, weights, ups, strict=True)):
            needs_weight, needs_bias, _, needs_up = needs[4 * i:4 * i + 4]
            d_up = None
            if up is not None:
                d_lows.append(dy @ up)
                if needs_up:
                    d_up = (low[:, at:at + up.size(1)].t() @ dy).t().float().mul_(ctx.scales[i])
                at += up.size(1)
            if needs_x:
                dx = dy @ weight if dx is None else dx.addmm_(dy, weight)
            gradients += [dy.t() @ x if needs_weight else None, dy.sum(0) if needs_bias else None, None, d_up]
        if d_lows:
            d_low = torch.cat(d_lows, 1)
            if dx is not None:
                dx.addmm_(d_low, down)
            d_downs = iter((d_low.t() @ x).float().split([part.size(1) for part in d_lows]))
            for i, up in enumerate(ups):
                gradients[4 * i + 2] = next(d_downs) if up is not None else None
        return None, dx, dys[0] if needs_residual else None, *gradients
