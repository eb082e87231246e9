"""The chosen entries of a weight's gradient without the rest of it: dW[i, j] = sum over tokens t of left[t, i] right[t, j].

On processors a sampled product costs, for each chosen entry, some ten times what a dense product costs for each entry of the
matrix (LOG.md), so it pays up to a density of some per cent; above that, and on GPUs, the dense product is taken and dropped
as soon as the entries are read off. Source of the method: Song et al., arXiv 2312.11875.
"""

import warnings

import torch

PAYS_UP_TO = {torch.float32: 0.16, torch.bfloat16: 0.08}  # of the matrix, measured on SmolLM2's shapes (LOG.md)


class Tokens:
    """Values (tokens, width) that several products read; as (width, tokens) float32 once, when first asked for."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self._columns: torch.Tensor | None = None

    @property
    def columns(self) -> torch.Tensor:
        if self._columns is None:
            self._columns = self.values.t().to(torch.float32, memory_format=torch.contiguous_format)
        return self._columns


class Entries:
    """Places in a matrix of `shape` (rows, columns); `flat` (count,) int32, ascending: row * columns + column."""

    def __init__(self, flat: torch.Tensor, shape: tuple[int, int]) -> None:
        self.flat, self.shape = flat, shape
        self._pattern: torch.Tensor | None = None

    @property
    def density(self) -> float:
        return len(self.flat) / (self.shape[0] * self.shape[1])

    def gradient(self, left: Tokens, right: Tokens) -> torch.Tensor:
        """(count,) float32, from left (tokens, rows) and right (tokens, columns) of one type."""
        if left.values.device.type == "cpu" and self.density <= PAYS_UP_TO.get(left.values.dtype, 0.0):
            sampled = torch.sparse.sampled_addmm(self._csr(), left.columns, right.columns.t(), beta=0.0)
            values: torch.Tensor = sampled.values()
            return values
        dense = left.values.t() @ right.values
        return dense.view(-1).index_select(0, self.flat).float()

    def _csr(self) -> torch.Tensor:
        if self._pattern is None:
            rows, columns = self.shape
            row = torch.div(self.flat, columns, rounding_mode="floor")
            starts = torch.zeros(rows + 1, dtype=torch.int32)
            starts[1:] = torch.bincount(row, minlength=rows).cumsum(0)
            with warnings.catch_warnings():  # that sparse tensors are young, and unchecked unless asked for
                warnings.simplefilter("ignore", UserWarning)
                self._pattern = torch.sparse_csr_tensor(starts, self.flat - row * columns, torch.zeros(len(self.flat)),
                                                        (rows, columns), check_invariants=False)
        return self._pattern
