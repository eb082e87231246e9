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


def test_every_position_of_a_row_has_its_token(rows: Rows) -> None:
    unpack = rows.unpack.view(3, 6)
    assert torch.equal(rows.unpack[rows.pack], torch.arange(rows.tokens))
    assert all(torch.equal(row[:rows.shared], torch.arange(rows.shared)) for row in unpack)
    own = [unpack[row, rows.shared:length] for row, length in enumerate((5, 3, 4))]
    assert torch.equal(torch.cat(own), torch.arange(rows.shared, rows.tokens))


def test_each_token_has_one_position_of_its_own(rows: Rows) -> None:
    held = rows.holders >= 0
    assert torch.equal(rows.holders[held].sort().values, torch.arange(rows.tokens))
    assert torch.equal(rows.holders[held], rows.unpack[held])


@pytest.mark.parametrize(("ids", "lengths", "expected"), [
    ([[1, 2, 3], [1, 2, 4]], [3, 3], 2),
    ([[1, 2, 3], [1, 2, 3]], [3, 3], 3),
    ([[1, 2, 0], [1, 2, 0]], [2, 2], 2),  # padding is not shared
    ([[1, 2, 3], [2, 2, 3]], [3, 3], 0),
    ([[1, 2, 3]], [3], 3),
])
def test_common_start(ids: list[list[int]], lengths: list[int], expected: int) -> None:
    assert common_start(torch.tensor(ids), torch.tensor(lengths)) == expected
