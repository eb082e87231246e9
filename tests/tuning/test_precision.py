import pytest
import torch

from finemesh.tuning import precision
from finemesh.tuning.precision import Precision, measure_precision


@pytest.mark.parametrize(("bf16", "chosen"), [(400.0, "bf16"), (120.0, "fp32")])
def test_bf16_only_where_it_is_faster(bf16, chosen, monkeypatch):
    monkeypatch.setattr(precision, "_gflops", lambda dtype, *_: bf16 if dtype is torch.bfloat16 else 100.0)
    assert measure_precision().name == chosen


def test_measures_this_machine():
    found = measure_precision(rows=64, width=128, repeats=2)
    assert found.fp32_gflops > 0
    assert found.bf16_gflops > 0
    assert Precision(**found.to_json()) == found
