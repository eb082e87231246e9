"""Packed rows: every token once, shared ones for all, and each map's transpose."""

import pytest
import torch

from finemesh.tuning.kernels.packing import Rows, common_start, rows_of


@pytest.fixture(params=[0, 2, 3])
def rows(request: pytest.FixtureRequest) -> Rows:
    return rows_of(torch.tensor([5, 3, 4]), 6, request.param)


def test_padding_is_not_packed_and_shared_tokens_are_packed_once(rows: Rows) -> None:
    assert rows.tokens == 12 - 2 * rows.shared
    assert len(set(rows.pack.tolist())) == rows.tokens


def test_spread_gives_each_row_its_tokens(rows: Rows) -> None:
    tokens = torch.arange(rows.tokens, dtype=torch.float)[:, None]
    spread = rows.spread(tokens)[..., 0]
    assert torch.equal(rows.gather(spread[..., None]), tokens)
    assert all(torch.equal(row[:rows.shared], spread[0, :rows.shared]) for row in spread)
    own = [spread[row, rows.shared:length] for row, length in enumerate((5, 3, 4))]
    assert torch.equal(torch.cat(own), tokens[rows.shared:, 0])


def test_gradients_are_transposes(rows: Rows) -> None:
    torch.manual_seed(0)
    real = torch.arange(6) < torch.tensor([5, 3, 4])[:, None]
    packed = torch.randn(rows.tokens, 2, dtype=torch.float64)
    spread = torch.randn(3, 6, 2, dtype=torch.float64) * real[..., None]  # padding has no gradient
    torch.testing.assert_close((rows.spread(packed) * spread).sum(), (packed * rows.gather_gradient(spread)).sum())
    torch.testing.assert_close((rows.gather(spread) * packed).sum(), (spread * rows.spread_gradient(packed)).sum())


@pytest.mark.parametrize(("ids", "lengths", "expected"), [
    ([[1, 2, 3], [1, 2, 4]], [3, 3], 2),
    ([[1, 2, 3], [1, 2, 3]], [3, 3], 3),
    ([[1, 2, 0], [1, 2, 0]], [2, 2], 2),  # padding is not shared
    ([[1, 2, 3], [2, 2, 3]], [3, 3], 0),
    ([[1, 2, 3]], [3], 3),
])
def test_common_start(ids: list[list[int]], lengths: list[int], expected: int) -> None:
    assert common_start(torch.tensor(ids), torch.tensor(lengths)) == expected
