"""The chosen entries of a weight's gradient without the rest of it: dW[i, j] = sum over tokens t of left[t, i] right[t, j].

On processors a sampled product costs, for each chosen entry, some five times what a dense product costs for each entry of the
matrix (LOG.md), so it pays up to a density of some per cent; above that, and on GPUs, the dense product is taken and dropped
as soon as the entries are read off. Source of the method: Song et al., arXiv 2312.11875.
"""

from typing import Any

import numpy as np
import torch
from numba import prange

from finemesh.tuning.kernels.compiled import SQUARE, kernel, run, transpose_square, wide

PAYS_UP_TO = {torch.float32: 0.2, torch.bfloat16: 0.12}  # of the matrix, measured on SmolLM2's shapes (LOG.md)
TILE = 32


class Tokens:
    """Values (tokens, width) that several products read; as (width, padded tokens) once, when first asked for."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self._columns: torch.Tensor | None = None

    @property
    def columns(self) -> torch.Tensor:
        if self._columns is None:
            tokens, width = self.values.shape
            padded = (-(-tokens // TILE) | 1) * TILE  # odd, see _transpose
            self._columns = torch.empty(width, padded, dtype=self.values.dtype)
            run(_transpose, self.values.contiguous(), self._columns)
        return self._columns


class Entries:
    """Places in a matrix of `shape` (rows, columns); `flat` (count,) int32, ascending: row * columns + column.

    Where each row's begin is found here: what is kept for good must not lie between activations (LOG.md).
    """

    def __init__(self, flat: torch.Tensor, shape: tuple[int, int]) -> None:
        self.flat, self.shape = flat, shape
        rows, columns = shape
        firsts = torch.arange(rows + 1, device=flat.device) * columns
        self._starts = torch.searchsorted(flat.long(), firsts, out_int32=True)  # (rows + 1,)

    @property
    def density(self) -> float:
        return len(self.flat) / (self.shape[0] * self.shape[1])

    def gradient(self, left: Tokens, right: Tokens) -> torch.Tensor:
        """(count,) float32, from left (tokens, rows) and right (tokens, columns) of one type."""
        if left.values.device.type == "cpu" and self.density <= PAYS_UP_TO.get(left.values.dtype, 0.0):
            values = torch.empty(len(self.flat))
            run(_sampled_product, self._starts, self.flat, left.columns, right.columns, values)
            return values
        dense = left.values.t() @ right.values
        return dense.view(-1).index_select(0, self.flat).float()


@kernel
def _transpose(values: Any, columns: Any) -> None:
    """Square by square; columns a power of 2 apart would push each other out of caches. What is beyond `values` is 0."""
    tokens, width = values.shape
    for square in prange(columns.shape[1] // SQUARE):
        first = square * SQUARE
        for start in range(0, width, SQUARE):
            if first + SQUARE <= tokens and start + SQUARE <= width:
                transpose_square(values, first, start, columns)
            else:
                for i in range(start, min(start + SQUARE, width)):
                    for t in range(first, first + SQUARE):
                        columns[i, t] = values[t, i] if t < tokens else 0


@kernel
def _sampled_product(starts: Any, flat: Any, left: Any, right: Any, values: Any) -> None:
    """left (rows, tokens), right (columns, tokens) -> values (count,)"""
    rows, tokens = left.shape
    for i in prange(rows):
        if starts[i] < starts[i + 1]:
            own = np.empty(tokens, np.float32)
            for t in range(tokens):
                own[t] = wide(left[i, t])
            offset = i * len(right)
            fours = starts[i] + (starts[i + 1] - starts[i]) // 4 * 4
            for entry in range(starts[i], fours, 4):
                a, b = right[flat[entry] - offset], right[flat[entry + 1] - offset]
                c, d = right[flat[entry + 2] - offset], right[flat[entry + 3] - offset]
                of_a, of_b, of_c, of_d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
                for t in range(tokens):  # four at a time read `own` once
                    of_a += own[t] * wide(a[t])
                    of_b += own[t] * wide(b[t])
                    of_c += own[t] * wide(c[t])
                    of_d += own[t] * wide(d[t])
                values[entry], values[entry + 1], values[entry + 2], values[entry + 3] = of_a, of_b, of_c, of_d
            for entry in range(fours, starts[i + 1]):
                other = right[flat[entry] - offset]
                total = np.float32(0)
                for t in range(tokens):
                    total += own[t] * wide(other[t])
                values[entry] = total
