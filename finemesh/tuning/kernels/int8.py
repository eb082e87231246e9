"""Products with frozen weights in 8-bit integers, for the steps of a training run, where `search.precision: int8` asks for it.

Every row of an operand is divided by its largest entry and rounded to -127 .. 127; sums of products are exact:
x W^T = (s_x s_w^T) * (q_x q_w^T), and for the gradient of the input dy W = s_d * (q_d q_w) with the rows of dy * s_w^T rounded.
Row by row as Dettmers et al., arXiv 2208.07339; both directions, with the gradients of what is trained left exact, as
Wortsman et al., arXiv 2304.13013. A processor with such instructions does twice as many of them as in bfloat16. Weights are
rounded anew for each product (0.24 of its 1.6 ms at 256 tokens, less at more; LOG.md): no second copy of the model is kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import prange

from finemesh.tuning.kernels.compiled import from_order, in_order, kernel, narrow, run, wide


@dataclass(frozen=True)
class Rounded:
    """A matrix (rows, width) as int8 `values` times each row's `scale` (rows,) float32; NaN there where a row is not finite."""

    values: torch.Tensor
    scale: torch.Tensor

    def product(self, right: torch.Tensor, columns: torch.Tensor, added: torch.Tensor | None,
                dtype: torch.dtype) -> torch.Tensor:
        """(self @ right) * columns + added, (rows, n) in `dtype`; right (width, n) int8, columns (n,) float32."""
        sums = torch._int_mm(self.values, right)
        y = torch.empty(sums.shape, dtype=dtype)
        run(_scale, sums, self.scale, columns, y if added is None else added.contiguous(), added is not None, y)
        return y


def rounded(matrix: torch.Tensor, columns: torch.Tensor | None = None) -> Rounded:
    """matrix * columns, row by row; matrix (rows, width) of any floating type, columns (width,) float32 (default 1)."""
    columns = torch.ones(matrix.size(1)) if columns is None else columns
    result = Rounded(torch.empty(matrix.shape, dtype=torch.int8), torch.empty(len(matrix)))
    run(_round, matrix.contiguous(), columns, result.values, result.scale)
    return result


@kernel
def _round(matrix: Any, columns: Any, values: Any, scale: Any) -> None:
    rows, width = matrix.shape
    for t in prange(rows):
        rank = np.int32(0)
        for i in range(width):  # as integers: that goes in wide registers, and NaN is above all
            rank = max(rank, in_order(abs(wide(matrix[t, i]) * columns[i])))
        highest = from_order(rank)
        if highest > np.float32(0) and highest < np.float32(np.inf):
            scale[t] = highest / np.float32(127)
            stretched = np.float32(127) / highest
            for i in range(width):
                values[t, i] = np.int32(wide(matrix[t, i]) * columns[i] * stretched + np.float32(128.5)) - np.int32(128)
        else:
            scale[t] = np.float32(0) if highest == np.float32(0) else np.float32(np.nan)
            for i in range(width):
                values[t, i] = 0


@kernel
def _scale(sums: Any, rows: Any, columns: Any, added: Any, adds: bool, y: Any) -> None:
    count, width = sums.shape
    for t in prange(count):
        row = rows[t]
        if adds:
            for i in range(width):
                y[t, i] = narrow(np.float32(sums[t, i]) * row * columns[i] + wide(added[t, i]), y)
        else:
            for i in range(width):
                y[t, i] = narrow(np.float32(sums[t, i]) * row * columns[i], y)


@contextmanager
def in_int8(wanted: bool) -> Iterator[None]:
    """Whether products with frozen weights are done in 8 bits meanwhile; not what is kept longer than a step."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


_wanted: ContextVar[bool] = ContextVar("in_int8", default=False)


def is_int8() -> bool:
    return _wanted.get()
