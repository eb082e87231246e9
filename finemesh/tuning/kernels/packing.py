"""Rows of a batch without padding, and with what all rows begin with held once.

Everything but attention works token by token, so a batch can be one list of distinct tokens: first the `shared` ones that
every row begins with (a chat template's system turn, trained prompt vectors), then what each row has of its own.
Causal attention makes that exact: a token's state depends on what comes before it alone, and that is the same in every row.
Attention itself sees rows, right-padded: a row never looks at what comes after it, so padding needs no mask.
"""

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Rows:
    """Where the `tokens` packed tokens lie in `batch` rows of `time` positions, and back."""

    batch: int
    time: int
    shared: int  # the first positions of every row, packed once
    unpack: torch.Tensor  # (batch * time,) the packed token at each position; of padding, any
    pack: torch.Tensor  # (tokens,) a position of each packed token; of shared ones, the first row's

    @property
    def tokens(self) -> int:
        return len(self.pack)

    @cached_property
    def holders(self) -> torch.Tensor:
        """(batch * time,) the packed token of which a position is the own one, -1 where there is none."""
        holders = torch.full_like(self.unpack, -1)
        holders[self.pack] = torch.arange(self.tokens)
        return holders


def common_start(input_ids: torch.Tensor, lengths: torch.Tensor) -> int:
    """The number of first tokens that are the same in all rows of (batch, time)."""
    shortest = int(lengths.min())
    same = (input_ids[:, :shortest] == input_ids[:1, :shortest]).all(0)
    return int(same.int().cumprod(0).sum())


def rows_of(lengths: torch.Tensor, time: int, shared: int) -> Rows:
    """Rows of `lengths` positions, of which the first `shared` are common, in `time` positions."""
    batch = len(lengths)
    position = torch.arange(time)
    own = (position >= shared) & (position < lengths[:, None])  # (batch, time)
    packed = shared + own.flatten().cumsum(0) - 1
    unpack = torch.where(own, packed.view(batch, time), torch.where(position < shared, position, 0))
    return Rows(batch, time, shared, unpack.flatten(), torch.cat([position[:shared], own.flatten().nonzero()[:, 0]]))
