"""RMSNorm and SwiGLU in few passes over memory; statistics in float32, tensors as they come."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function


class _RmsNorm(Function):
    """y = w x / rms(x), rms(x)^2 = mean(x^2) + eps. With n = x / rms(x) and g = w dy: dx = (g - n mean(g n)) / rms(x)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
        wide = x.float()
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.size(-1)).add_(eps).rsqrt_()
        y = (wide * inverse).to(dtype)
        ctx.save_for_backward(x, weight, inverse)
        return y.mul_(weight) if y.dtype == weight.dtype else (y * weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        normal = x.float() * inverse
        dweight = (dy * normal).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, dweight, None, None
        g = (dy * weight).float()
        mean = (g * normal).mean(-1, keepdim=True)
        return g.sub_(normal.mul_(mean)).mul_(inverse).to(x.dtype), dweight, None, None


class _SwiGlu(Function):
    """y = silu(gate) up; silu(gate) is computed again for the gradient rather than kept."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(dy * up, gate), F.silu(gate).mul_(dy)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """x (tokens, width) of any floating type -> the same shape in `dtype`."""
    y: torch.Tensor = _RmsNorm.apply(x, weight, eps, dtype)
    return y


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = _SwiGlu.apply(gate, up)
    return y
