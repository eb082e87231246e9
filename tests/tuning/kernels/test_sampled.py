"""The entries of a product, however they are computed, are those of the dense product."""

import pytest
import torch

from finemesh.tuning.kernels import sampled
from finemesh.tuning.kernels.sampled import Entries, Tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.001, 0.05, 0.5])
def test_entries_of_the_dense_product(dtype, density):
    torch.manual_seed(0)
    left, right = torch.randn(70, 40).to(dtype), torch.randn(70, 96).to(dtype)
    count = max(1, round(density * 40 * 96))
    flat = torch.randperm(40 * 96)[:count].sort().values.int()
    found = Entries(flat, (40, 96)).gradient(Tokens(left), Tokens(right))
    assert found.dtype == torch.float32
    exact = (left.double().t() @ right.double()).flatten()[flat]
    torch.testing.assert_close(found.double(), exact, atol=1e-4 if dtype == torch.float32 else 0.25, rtol=1e-5)


def test_both_ways_are_taken(monkeypatch):
    entries = Entries(torch.tensor([0, 5, 11], dtype=torch.int32), (3, 4))
    values = torch.randn(7, 3), torch.randn(7, 4)
    left, right = Tokens(values[0]), Tokens(values[1])
    dense = entries.gradient(left, right)
    assert left._columns is None
    monkeypatch.setattr(sampled, "PAYS_UP_TO", {torch.float32: 1.0})
    torch.testing.assert_close(entries.gradient(left, right), dense)
    assert left._columns is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [5, 32, 70])
def test_columns_are_made_once(count, dtype):
    tokens = Tokens(torch.randn(count, 50).to(dtype))
    assert tokens.columns is tokens.columns
    assert torch.equal(tokens.columns[:, :count], tokens.values.t())
    assert not tokens.columns[:, count:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_may_lie_anyhow(dtype):
    whole = torch.randn(50, 200).to(dtype)
    for values in (whole.t(), whole[:, 70:134], whole[:1].expand(40, 200)):
        tokens = Tokens(values)
        assert torch.equal(tokens.columns[:, :len(values)], values.t())
