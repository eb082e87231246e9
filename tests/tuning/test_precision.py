import pytest
import torch

from finemesh.tuning import precision
from finemesh.tuning.precision import Precision, measure_precision


@pytest.mark.parametrize(("bf16", "chosen"), [(400.0, "bf16"), (120.0, "fp32")])
def test_bf16_only_where_it_is_faster(bf16, chosen, monkeypatch):
    monkeypatch.setattr(precision, "_seconds", lambda a, _: 1 / (bf16 if a.dtype is torch.bfloat16 else 100.0))
    assert measure_precision().name == chosen


@pytest.mark.parametrize(("wanted", "name", "int8"), [
    ("auto", "bf16", "gradients"), ("fp32", "fp32", "no"), ("bf16", "bf16", "no"), ("int8", "bf16", "all")])
def test_what_is_asked_for_is_taken(wanted, name, int8):
    chosen = Precision("fp32", 100.0, 400.0, 800.0).chosen(wanted, kernels=True)
    assert (chosen.name, chosen.int8) == (name, int8)
    assert chosen.dtype is (torch.float32 if name == "fp32" else torch.bfloat16)
    assert chosen.mixed_precision == ("no" if name == "fp32" else "bf16")


@pytest.mark.parametrize(("rates", "kernels", "int8"), [
    ((100.0, 400.0, 800.0), True, "gradients"), ((100.0, 120.0, 300.0), True, "no"),
    ((100.0, 400.0, 500.0), True, "no"), ((100.0, 400.0, 0.0), True, "no"),
    ((100.0, 400.0, 800.0), False, "no")])
def test_gradients_with_int8_only_where_that_is_faster_and_known(rates, kernels, int8):
    assert Precision("fp32", *rates).chosen("auto", kernels=kernels).int8 == int8


def test_measures_this_machine():
    threads = torch.get_num_threads()
    found = measure_precision(rows=64, width=128, repeats=2)
    assert torch.get_num_threads() == threads
    assert found.fp32_gflops > 0
    assert found.bf16_gflops > 0
    assert found.int8_gops > 0
    assert Precision(**found.to_json()) == found
