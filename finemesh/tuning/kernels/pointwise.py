"""RMSNorm and SwiGLU, each in one pass over memory; statistics in float32, tensors as they come."""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch.autograd import Function

from finemesh.tuning.kernels.compiled import exp, kernel, narrow, run, wide


class _RmsNorm(Function):
    """y = w x / rms(x), rms(x)^2 = mean(x^2) + eps. With n = x / rms(x) and g = w dy: dx = (g - n mean(g n)) / rms(x)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
        x, inverse, y = x.contiguous(), torch.empty(len(x)), torch.empty(x.shape, dtype=dtype)
        run(_normalize, x, weight, eps, inverse, y)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            run(_normalize_backward, x, weight, inverse, dy.contiguous(), dx)
        if ctx.needs_input_grad[1]:
            dweight = (dy * (x.float() * inverse[:, None])).sum(0)
        return dx, dweight, None, None


@kernel
def _normalize(x: Any, weight: Any, eps: float, inverse: Any, y: Any) -> None:
    rows, width = x.shape
    for t in prange(rows):
        total = np.float32(0)
        for i in range(width):
            total += wide(x[t, i]) * wide(x[t, i])
        inverse[t] = np.float32(1) / np.sqrt(total / np.float32(width) + np.float32(eps))
        for i in range(width):
            y[t, i] = narrow(wide(x[t, i]) * inverse[t] * wide(weight[i]), y)


@kernel
def _normalize_backward(x: Any, weight: Any, inverse: Any, dy: Any, dx: Any) -> None:
    rows, width = x.shape
    for t in prange(rows):
        total = np.float32(0)
        for i in range(width):
            total += wide(dy[t, i]) * wide(weight[i]) * wide(x[t, i])
        along = total * inverse[t] * inverse[t] / np.float32(width)
        for i in range(width):
            dx[t, i] = narrow((wide(dy[t, i]) * wide(weight[i]) - wide(x[t, i]) * along) * inverse[t], dx)


class _SwiGlu(Function):
    """y = silu(gate) up; silu(gate) is computed again for the gradient rather than kept."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate, up, y = gate.contiguous(), up.contiguous(), torch.empty_like(gate)
        run(_gated, gate, up, y)
        ctx.save_for_backward(gate, up)
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        run(_gated_backward, gate, up, dy.contiguous(), d_gate, d_up)
        return d_gate, d_up


@kernel
def _gated(gate: Any, up: Any, y: Any) -> None:
    rows, width = gate.shape
    for t in prange(rows):
        for i in range(width):
            x = wide(gate[t, i])
            y[t, i] = narrow(x / (np.float32(1) + exp(-x)) * wide(up[t, i]), y)


@kernel
def _gated_backward(gate: Any, up: Any, dy: Any, d_gate: Any, d_up: Any) -> None:
    rows, width = gate.shape
    for t in prange(rows):
        for i in range(width):
            x, d = wide(gate[t, i]), wide(dy[t, i])
            share = np.float32(1) / (np.float32(1) + exp(-x))
            d_gate[t, i] = narrow(d * wide(up[t, i]) * share * (np.float32(1) + x * (np.float32(1) - share)), d_gate)
            d_up[t, i] = narrow(d * x * share, d_up)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """x (tokens, width) of any floating type -> the same shape in `dtype`."""
    y: torch.Tensor = _RmsNorm.apply(x, weight, eps, dtype)
    return y


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = _SwiGlu.apply(gate, up)
    return y
