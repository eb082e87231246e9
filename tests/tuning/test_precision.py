import pytest
import torch

from finemesh.tuning import precision
from finemesh.tuning.precision import Precision, measure_precision


@pytest.mark.parametrize(("bf16", "chosen"), [(400.0, "bf16"), (120.0, "fp32")])
def test_bf16_only_where_it_is_faster(bf16, chosen, monkeypatch):
    monkeypatch.setattr(precision, "_seconds", lambda a, _: 1 / (bf16 if a.dtype is torch.bfloat16 else 100.0))
    assert measure_precision().name == chosen


@pytest.mark.parametrize(("wanted", "stored"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("int8", torch.bfloat16)])
def test_what_is_asked_for_is_taken(wanted, stored):
    chosen = Precision("fp32", 100.0, 400.0).chosen(wanted)
    assert (chosen.name, chosen.dtype) == (wanted, stored)
    assert chosen.mixed_precision == ("no" if wanted == "fp32" else "bf16")


def test_int8_is_beside_the_faster_of_the_other_two():
    assert Precision("int8", 100.0, 120.0).dtype is torch.float32


def test_measures_this_machine():
    threads = torch.get_num_threads()
    found = measure_precision(rows=64, width=128, repeats=2)
    assert torch.get_num_threads() == threads
    assert found.fp32_gflops > 0
    assert found.bf16_gflops > 0
    assert Precision(**found.to_json()) == found


def test_a_type_that_is_far_behind_is_not_waited_for(monkeypatch):
    asked = []

    def seconds(a, _):
        asked.append(a.dtype)
        return 1.0 if a.dtype is torch.bfloat16 else 0.01

    monkeypatch.setattr(precision, "_seconds", seconds)
    assert measure_precision(repeats=8).name == "fp32"
    assert asked.count(torch.bfloat16) == 2
    assert asked.count(torch.float32) == 9
